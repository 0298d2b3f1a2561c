import numpy as np

from puna.train.prepare.words import phrase, plain, runs, words


def test_same_words_have_same_hashes_wherever_they_stand() -> None:
    one, two = phrase("the goat ate the tin"), phrase("  «The GOAT», ate: the tin!")
    assert np.array_equal(one, two)
    assert one[0] == one[3]
    assert len(set(one.tolist())) == 4


def test_many_words_have_many_hashes() -> None:
    numbered = phrase(" ".join(f"w{n}" for n in range(100_000)))
    assert len(set(numbered.tolist())) == 100_000


def test_width_and_case_and_composition_make_no_difference() -> None:
    assert np.array_equal(phrase("Ｃａｆé ﬁn"), phrase("cafe\u0301 FIN"))
    assert not np.array_equal(phrase("cafe"), phrase("café"))


def test_characters_stand_alone_where_no_spaces_part_words() -> None:
    found = words(plain("แม่ cat 日本語"))
    assert found.alone.tolist() == [True] * 3 + [False] + [True] * 3
    assert found.lengths.tolist() == [1, 1, 1, 3, 1, 1, 1]


def test_marks_belong_to_their_words() -> None:
    assert len(words(plain("हिन्दी में कहानी")).hashes) == 3
    assert len(words(plain("مُحَمَّد")).hashes) == 1


def test_text_without_words_has_none() -> None:
    for text in ("", " \n", "?! -- …"):
        assert len(words(text).hashes) == 0
    assert len(runs(phrase("one two"), 3)) == 0


def test_run_of_words_is_the_same_run_elsewhere() -> None:
    a, b = runs(phrase("x one two three"), 3), runs(phrase("one two three y"), 3)
    assert a[1] == b[0] and a[0] != b[1]
    assert runs(phrase("two one"), 2)[0] != runs(phrase("one two"), 2)[0]


def test_hashes_are_the_same_on_every_machine() -> None:
    assert [f"{each:x}" for each in phrase("puna 日").tolist()] == ["b4fef576f3a8a994", "188add2f0fe403e4"]
