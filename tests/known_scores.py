"""Answers whose score by every metric was worked out by hand, and a cutter of Chinese words that needs no package."""

from __future__ import annotations

# metric -> (answer, reference, value worked out by hand)
KNOWN: dict[str, list[tuple[str, str, float]]] = {
    "token_f1": [
        ("the cat sat", "a cat sat down", 4 / 5),  # cat, sat of 2 and 3 words
        ("The Cat, sat!", "cat sat", 1.0),
        ("cat cat cat", "cat dog", 2 / 5),  # one cat is shared, not three
        ("cat cat", "cat cat dog", 4 / 5),
        ("the an a", "cat", 0.0),
        ("", "cat", 0.0),
        ("it is 1,000", "1000", 2 / 4),
        ("theatre", "atre", 0.0),  # articles are words, not letters
    ],
    "exact_match": [("The  Cat.", "cat", 1.0), ("a cat", "cats", 0.0), ("cat", "cat cat", 0.0)],
    "contains": [
        ("It was the Cat, I think.", "a cat", 1.0),
        ("It was I", "cat", 0.0),
        ("cat", "the cat sat", 0.0),  # the reference is looked for in the answer, not the other way round
        ("anything", "the", 0.0),  # nothing is left of the reference
        ("It was 1984.", "9", 0.0),  # a number is looked for as a whole
        ("It was 9.", "9", 1.0),
        ("Version 3.5", "5", 0.0),
        ("It cost 1,000 or so", "1000", 1.0),
        ("It cost 1000.", "1,000", 1.0),
        ("It cost 12 dollars", "$12.", 1.0),
        ("It was 12 May 1984", "May 19", 1.0),  # a reference with words is text
    ],
    "substring": [("It is ABC-12.", "abc-12", 1.0), ("It is ABC12.", "abc-12", 0.0), ("x", "", 0.0)],
    "whole_number": [
        ("In 2012.", "2012", 1.0),
        ("In 20123", "2012", 0.0),
        ("It is 2012.5", "2012", 0.0),
        ("It is 3,2012", "2012", 0.0),
        ("(2012)", "2012", 1.0),
        ("about 5%", "5", 1.0),
        ("45", "5", 0.0),
        ("5.3", "5", 0.0),
        ("Version 3.5", "5", 0.0),
        ("It is 1.5.", "1.5", 1.0),
    ],
    "first_number": [("It is <00423>.", "423", 1.0), ("line 7 holds 423", "423", 0.0), ("none", "1", 0.0)],
    "rouge_1": [
        ("a b c", "a b d", 2 / 3),
        ("a a a", "a b", 2 / 5),
        ("a a", "A a", 1.0),
        ("", "a", 0.0),
        ("don't", "don t", 1.0),
    ],
    "rouge_2": [("a b c", "a b d", 1 / 2), ("a b a b", "a b", 2 / 4), ("a", "a", 0.0)],
    "rouge_l": [
        ("police kill the gunman", "police killed the gunman", 3 / 4),  # Lin (2004), section 3
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("the police", "police killed a gunman", 2 / 6),
        ("", "a", 0.0),
    ],
    "longbench_rouge_l": [
        ("a b c", "a b d", 2 / 3),
        ("a a b", "a b", 1.0),  # a word counts once
        ("b c. a b", "a b c", 1.0),  # the union over the answer's sentences
        ("A b", "a b", 1 / 2),  # case counts
        ("", "a", 0.0),
        ("...", "a", 0.0),
    ],
    "loogle_rouge_l": [("a b c d", "a b", 1.0), ("a", "a b", 1 / 2), ("", "a", 0.0)],
    "option": [
        ("The correct answer is (B).", "B", 1.0),
        ("The correct answer is **B**.", "B", 1.0),
        ("The correct answer is (C), not (B)", "B", 0.0),
        ("B", "B", 0.0),  # without the words there is no point, as published
        ("", "A", 0.0),
        ("The correct answer is A or B? The correct answer is (B).", "B", 1.0),  # a letter in brackets goes first
        ("The correct answer is A or B? The correct answer is (B).", "A", 0.0),
        ("The correct answer is (Berlin)", "B", 0.0),
        ("The correct answer is (A or B)", "A", 0.0),
        ("The correct answer is (C: foo)", "C", 0.0),
        ("The correct answer is Berlin", "B", 1.0),  # as published
    ],
    "lone_option": [
        ("B", "B", 1.0),
        ("(C) because A", "C", 1.0),
        ("Alas, D", "D", 1.0),
        ("ABC", "A", 0.0),
        ("The correct answer is A or B? The correct answer is (B).", "B", 1.0),
        ("The correct answer is (Berlin)", "B", 0.0),
        ("The correct answer is (C: foo)", "C", 1.0),
    ],
    "exam_option": [
        ("B", "(B) The cat", 1.0),
        ("The answer: C", "(C) x", 1.0),
        ("Because C", "(C) x", 0.0),  # the first capital A to D counts, even in a word
        ("no", "(A) x", 1.0),  # where there is none, the published rule says A
        ("AB", "(A) x", 0.0),
        ("  ", "(A) x", 0.0),
    ],
    "exam_options": [
        ("AB", "AB", 1.0),
        ("BA", "AB", 1.0),
        ("A", "AB", 0.25),
        ("AC", "AB", 0.0),
        ("ABC", "AB", 0.0),
        ("A. and C. are right", "AC", 1.0),
        ("C. and A. are right", "AC", 1.0),
        ("The answer is C", "C", 1.0),
        ("The answer: BC", "BC", 1.0),
        ("The answer: CB", "BC", 0.25),  # a run inside an answer is taken as it stands, one at its beginning sorted
        ("The answer: BB", "B", 0.25),
        ("A. Question 2. B.", "A", 1.0),
        ("none", "A", 1.0),
        ("", "A", 0.0),
    ],
    "exam_number": [
        ("So 3 + 4 = 7. The answer is 7.", "7", 1.0),
        ("we get $1,200 in all", "1200", 1.0),
        ("7 and then 8", "7", 0.0),
        ("The answer is 7.50", "7", 1.0),
        ("none", "7", 0.0),
        ("it is 8\n\nor 7", "7", 0.0),
    ],
    "exam_words": [
        ("The benefits of  Mindfulness, surely", "benefits of mindfulness", 1.0),
        ("\n\nx\nthe cat", "cat", 1.0),
        ("one line\nthe cat", "cat", 0.0),
        ("2.0", "2", 1.0),
        ("12", "2", 0.0),
    ],
    "exam_loyalty": [
        ("False. [fact: True]", "False [fact: True]", 1.0),
        ("true", "False [fact: True]", 0.0),
        ("it is false, true", "False [fact: False]", 1.0),
        ("[fact: false]", "False [fact: False]", 0.0),
    ],
    "count": [("7", "7", 1.0), ("7 of 8, so 7 or 9", "7", 1 / 2), ("none", "7", 0.0), ("17", "7", 0.0)],
    "paragraph": [
        ("Paragraph 3", "Paragraph 3", 1.0),
        ("3 or 4", "Paragraph 3", 1 / 2),
        ("30", "Paragraph 3", 0.0),
        ("段落3", "段落3", 1.0),
        ("是第3段，不是段落4", "段落3", 1 / 2),  # any number counts, not only one behind the word
        ("段落三", "段落3", 0.0),
    ],
    "code_similarity": [
        ("x = 1", "x = 1", 1.0),
        ("# first\nx = 1\ny = 2", "x = 1", 1.0),
        ("\n\n```python\nx = 2", "x = 1", 0.8),  # 8 of 10 characters are shared
        ("abcd", "bcde", 0.75),
        ("// only\n# words", "x", 0.0),
        ("", "x", 0.0),
    ],
}
# The same for words that are cut out of a text; the cutter stands in for jieba, which cuts these texts alike.
CHINESE: dict[str, list[tuple[str, str, float]]] = {
    "chinese_f1": [
        ("北京大学。", "北京大学", 1.0),
        ("我来到北京大学", "来到清华大学", 2 / 5),  # 来到 of 3 and 2 words; one character less would be another word
        ("清华，大学", "清华大学", 0.0),  # words are cut before the comma is gone
        ("北京大学北京大学", "北京大学", 2 / 3),  # one word is shared, not two
        ("北京大学北京大学", "北京大学，北京大学来到", 4 / 5),
        ("我 来到\n北京大学", "我来到北京大学", 1.0),
        ("「BERT」", "bert", 1.0),
        ("《北京大学》", "北京大学", 2 / 3),  # 》 is on the published list and 《 is not
        ("。，！", "北京大学", 0.0),
        ("", "北京大学", 0.0),
    ],
    "chinese_rouge_l": [
        ("北京大学。", "北京大学", 2 / 3),  # punctuation is a word
        ("我来到北京大学", "我来到清华大学", 2 / 3),
        ("北京大学我来到", "我来到北京大学", 2 / 3),  # 2 of 3 words stand in order
        ("BERT", "bert", 0.0),
        ("我我来到", "我来到", 1.0),  # a word counts once
        ("", "北京大学", 0.0),
    ],
}
_LEXICON = ("北京大学", "清华大学", "大学", "北京", "清华", "来到", "BERT", "bert")
CLASSES = ("Date", "Date of birth", "Place", "Person")
CLASSIFIED = [("Place", "Place", 1.0), ("Place or Person", "Place", 1 / 2), ("none", "Place", 0.0)]
CLASSIFIED += [("Date of birth", "Date of birth", 1.0), ("Date of birth", "Date", 1 / 2), ("Person", "Place", 0.0)]


def cut(text: str) -> list[str]:
    """The longest word of the lexicon at every place, else one character."""
    found = []
    while text:
        found.append(next((word for word in _LEXICON if text.startswith(word)), text[0]))
        text = text[len(found[-1]) :]
    return found
