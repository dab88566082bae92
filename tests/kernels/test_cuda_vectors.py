"""What the GPU's instructions for four numbers at once are told, tried in plain arithmetic."""

import numpy as np
import pytest

from msgd.kernels.cuda_vectors import AS_ITS_LAST_BYTE, TWO_TO_23, bytes4


def permuted(low, high, which):
    """Return four of the eight bytes of two words, as the instruction PRMT does."""
    there = (low | high << 32).to_bytes(8, "little")
    return int.from_bytes(bytes(there[which >> 4 * k & 7] for k in range(4)), "little")


@pytest.mark.parametrize("word", [0, 0x04030201, 0xFF00807F, 0xFFFFFFFF])
def test_a_byte_becomes_the_last_one_of_two_to_23(word):
    found = bytes4(np.uint32(word))
    assert found == tuple(word.to_bytes(4, "little"))
    for k, byte in enumerate(found):
        bits = permuted(word, TWO_TO_23, AS_ITS_LAST_BYTE + k)
        assert np.uint32(bits).view(np.float32) - np.float32(2**23) == byte
