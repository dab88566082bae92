"""Numbers with their nouns."""

import pytest

from msgd.wording import times, unbroken


@pytest.mark.parametrize(
    ("n", "given", "said"),
    [
        (1, ["run"], "1 run"),
        (0, ["run"], "0 runs"),
        (2, ["run"], "2 runs"),
        (1200, ["run"], "1,200 runs"),
        (1, ["class", "classes"], "1 class"),
        (3, ["class", "classes"], "3 classes"),
    ],
)
def test_one_is_not_in_the_plural(n, given, said):
    assert times(n, *given) == said


def test_an_unbroken_text_has_no_space_at_which_a_line_ends():
    assert unbroken(times(2, "test image")) == "2\N{NO-BREAK SPACE}test\N{NO-BREAK SPACE}images"
