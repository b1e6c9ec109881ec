"""Files of models and adapters, from and to what others read: one internal form each, a module a format.

    model    Model     hf  llama2c  gguf            config.json's keys, weights under Hugging Face's names, tokenizer files
    adapter  Adapter   peft  mlx  gguf_lora         A [r, in], B [out, r], scale, magnitude by module

Each `read` takes a path from a stranger: bounded, nothing unpickled, one ParseError that names the file. Each `write` is handed a
folder or file that does not exist yet (`files.py`) and refuses with a UsageError what the format cannot say.
"""
