"""Our table of Core ML's messages beside coremltools' own descriptors, in one process."""

import pytest
from coremltools.proto import Model_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from torchane.inspect import schema

_NUMBERS = {FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_ENUM}


def messages(ours: Descriptor, theirs: Descriptor, found: dict) -> dict:
    """Every pair of messages that the two models reach, by our name."""
    if ours.full_name not in found:
        found[ours.full_name] = (ours, theirs)
        for field in ours.fields:
            other = theirs.fields_by_number.get(field.number)
            if field.message_type is not None and other is not None:
                messages(field.message_type, other.message_type, found)
    return found


PAIRS = messages(schema.Model.DESCRIPTOR, Model_pb2.Model.DESCRIPTOR, {})


@pytest.mark.parametrize("name", PAIRS)
def test_every_field_has_the_number_and_the_form_that_coremltools_gives_it(name):
    ours, theirs = PAIRS[name]
    for field in ours.fields:
        other = theirs.fields_by_number[field.number]
        assert (field.name, field.is_repeated) == (other.name, other.is_repeated)
        held_raw = field.type == FieldDescriptor.TYPE_BYTES and other.type == FieldDescriptor.TYPE_MESSAGE
        assert held_raw or field.type == other.type or {field.type, other.type} <= _NUMBERS
        groups = [found.containing_oneof and found.containing_oneof.name for found in (field, other)]
        assert groups[0] == groups[1]


@pytest.mark.parametrize("name", PAIRS)
def test_no_field_that_a_program_uses_is_missing(name):
    ours, theirs = PAIRS[name]
    assert set(theirs.fields_by_number) <= set(ours.fields_by_number)


def test_the_messages_live_in_a_pool_of_their_own():
    assert schema.Model.DESCRIPTOR.file.pool is not Model_pb2.Model.DESCRIPTOR.file.pool
    assert schema.Model.DESCRIPTOR.full_name == "torchane.coreml.Model"


def test_a_model_of_another_kind_keeps_its_bytes():
    theirs = Model_pb2.Model(specificationVersion=4)
    theirs.neuralNetwork.layers.add().name = "first"
    data = theirs.SerializeToString(deterministic=True)
    ours = schema.Model.FromString(data)
    assert ours.WhichOneof("Type") == "neuralNetwork"
    assert ours.SerializeToString(deterministic=True) == data
