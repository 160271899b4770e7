"""A text that was learned is found in what judges, at any length and in any script."""

import pytest

from course_utils.text.contamination import first_overlaps, overlaps

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"
HAN, THAI, HINDI = "".join(map(chr, range(0x4E00, 0x4E1A))), "".join(map(chr, range(0x0E01, 0x0E2F))) * 2, "हिन्दी "


@pytest.mark.parametrize(
    ("judging", "learned", "is_known"),
    [
        (f"Zero, {THIRTEEN.upper()}!", f"... {THIRTEEN} fourteen", True),
        (THIRTEEN.removeprefix("one"), f"zero {THIRTEEN}", False),
        ("Press  the\nbutton.", "press the button.", True),  # short, and equal but for case and blanks
        ("Press the button.", "Press the button twice.", False),
        ("Cafe\u0301", "CAFÉ", True),
        (f"e\u0301 {THIRTEEN[4:]}!", f"... É {THIRTEEN[4:]} fourteen", True),
        (f"甲{HAN}。", f"乙{HAN[:9]}，{HAN[9:]}", True),  # 26 characters, whatever stands between them
        (HAN[1:], f"甲{HAN}", False),
        (f"x{THAI[:65]}", f"y{THAI[:65]}", True),
        (f"x{THAI[:64]}", f"y{THAI[:64]}", False),
        (HINDI * 12, f"{HINDI * 12}एक", False),  # twelve words, though each has three vowel signs
        (HINDI * 13, f"{HINDI * 13}एक", True),
        ("", THIRTEEN, False),
    ],
)
def test_a_text_that_was_learned_is_found_at_any_length_and_in_any_script(judging, learned, is_known):
    assert overlaps([judging, "something else"], iter(["no", learned])) == [is_known, False]
    assert first_overlaps([judging], ["no", learned]) == [1 if is_known else None]
    assert overlaps([judging], []) == [False]
