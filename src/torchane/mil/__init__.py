"""Apple's model intermediate language: types, programs, text, blobs, a checker and an evaluator."""
