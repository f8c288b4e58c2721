import gguf

from apr.checkpoint.gguf_header import GGML_TYPES, REMOVED_TYPES, TYPE_BY_NUMBER


def test_the_table_equals_the_gguf_package():
    theirs = {
        kind.name: (int(kind), *size) for kind, size in gguf.constants.GGML_QUANT_SIZES.items()
    }
    ours = {
        kind.name: (kind.number, kind.block_elements, kind.block_bytes)
        for kind in GGML_TYPES.values()
    }
    # The package may know newer types than apr, never the reverse, and must agree on the rest.
    assert {name: theirs.get(name) for name in ours} == ours


def test_no_number_means_two_types():
    assert len(TYPE_BY_NUMBER) == len(GGML_TYPES)
    assert not TYPE_BY_NUMBER.keys() & REMOVED_TYPES.keys()


def test_bits_per_weight():
    assert GGML_TYPES["Q4_K"].bits_per_weight == 4.5
    assert GGML_TYPES["Q6_K"].bits_per_weight == 6.5625
