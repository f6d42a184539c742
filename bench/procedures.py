"""Write a table of procedures to pretrain a small base on: strings, and what a rule makes of them. No task of the package.

    python bench/procedures.py procedures.csv --rows 400000 --text CORPUS       # CORPUS: of recipes/base/corpus.py

Tried for `builtin:base` and not taken, see LOG.md, 26 November 2026.

A small model that has copied, sorted, looked up and rewritten strings has the attention that a sequence task needs, whatever
its strings mean (Wu et al. 2021, https://arxiv.org/abs/2101.06223, LIME; Papadimitriou and Jurafsky 2023,
https://arxiv.org/abs/2304.13060). Which rule it is stands in front of the string, or two solved examples do. A third of the
rows are English: words that are missing, errors to mend, sentences to go on with, as T5 was trained (Raffel et al. 2020,
https://arxiv.org/abs/1910.10683, section 3.1.4), so that the base forgets no language meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import random
import string
from collections.abc import Callable
from pathlib import Path

Rule = Callable[[random.Random, str], tuple[str, str]]

CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"
OPENING, CLOSING = "([{<", ")]}>"
SYMBOLS = "=#+-/@.,:;*"
MOST = 200  # characters of a row
ENGLISH = 1 / 3  # of the rows


def word(generator: random.Random) -> str:
    """A word that can be spoken and means nothing."""
    syllables = [generator.choice(CONSONANTS) + generator.choice(VOWELS) for _ in range(generator.randint(1, 4))]
    return "".join(syllables) + generator.choice(["", "", *CONSONANTS])


def words(generator: random.Random, most: int = 7) -> list[str]:
    """Some such words."""
    return [word(generator) for _ in range(generator.randint(2, most))]


def brackets(generator: random.Random, atoms: str, depth: int = 0) -> str:
    """A string with nested brackets."""
    parts = []
    for _ in range(generator.randint(1, 4)):
        if depth < 3 and generator.random() < 0.35:
            kind = generator.randrange(len(OPENING))
            parts.append(OPENING[kind] + brackets(generator, atoms, depth + 1) + CLOSING[kind])
        else:
            parts.append("".join(generator.choices(atoms, k=generator.randint(1, 4))))
    return "".join(parts)


def text(generator: random.Random, alphabet: str) -> str:
    """A string of one of four kinds: of a few characters, of words, of numbers, with brackets."""
    kind = generator.randrange(4)
    if kind == 0:
        return "".join(generator.choices(alphabet, k=generator.randint(3, 30)))
    if kind == 1:
        return generator.choice(["", " ", "-", ", "]).join(words(generator))
    if kind == 2:
        return generator.choice([" ", ",", "-"]).join(
            str(generator.randrange(10 ** generator.randint(1, 4))) for _ in range(generator.randint(2, 8))
        )
    return brackets(generator, alphabet)


def plain(name: str, change: Callable[[str], str]) -> tuple[str, Rule]:
    """A rule that needs nothing but the string."""
    return name, lambda generator, alphabet: (given := text(generator, alphabet), change(given))


def runs(given: str) -> str:
    """Run-length code: aaab -> a3b."""
    out, start = [], 0
    for i in range(1, len(given) + 1):
        if i == len(given) or given[i] != given[start]:
            out.append(given[start] + (str(i - start) if i - start > 1 else ""))
            start = i
    return "".join(out)


def depths(given: str) -> str:
    """How deep each bracket lies, in order."""
    depth, out = 0, []
    for character in given:
        if character in OPENING:
            depth += 1
            out.append(str(depth))
        elif character in CLOSING:
            out.append(str(depth))
            depth -= 1
    return "".join(out) or "0"


def substitute(generator: random.Random, alphabet: str) -> tuple[str, str]:
    """A code book in the input, and a text in that code."""
    keys = generator.sample(string.ascii_lowercase, generator.randint(3, 8))
    book = {key: word(generator)[:4] for key in keys}
    asked = generator.choices(keys, k=generator.randint(2, 8))
    return " ".join(f"{k}={v}" for k, v in book.items()) + " | " + "".join(asked), "".join(book[k] for k in asked)


def look_up(generator: random.Random, alphabet: str) -> tuple[str, str]:
    """One value out of a list of keys and values; or the key of a value."""
    pairs = dict(zip(words(generator, 8), words(generator, 8), strict=False))
    key = generator.choice(list(pairs))
    listed = ", ".join(f"{k}: {v}" for k, v in pairs.items())
    return (f"{listed} ? {key}", pairs[key]) if generator.random() < 0.5 else (f"{listed} ! {pairs[key]}", key)


def replace(generator: random.Random, alphabet: str) -> tuple[str, str]:
    """Every occurrence of one string becomes another."""
    given = text(generator, alphabet)
    start = generator.randrange(len(given))
    old, new = given[start : start + generator.randint(1, 2)], generator.choice(["", *word(generator)[:3]])
    return f"{old} -> {new} | {given}", given.replace(old, new)


def rewrite(generator: random.Random, alphabet: str) -> tuple[str, str]:
    """One step of a string rewriting system, all letters at once."""
    letters = generator.sample(string.ascii_uppercase, 3)
    rules = {letter: "".join(generator.choices(letters, k=generator.randint(1, 3))) for letter in letters}
    given = "".join(generator.choices(letters, k=generator.randint(3, 10)))
    return ", ".join(f"{k}>{v}" for k, v in rules.items()) + " | " + given, "".join(rules[c] for c in given)


def arithmetic(generator: random.Random, alphabet: str) -> tuple[str, str]:
    """Sums, differences and small products."""
    first, second = (generator.randrange(10 ** generator.randint(1, 4)) for _ in range(2))
    kind = generator.choice("+-*")
    if kind == "*":
        first, second = first % 100, second % 100
    return f"{first} {kind} {second}", str({"+": first + second, "-": first - second, "*": first * second}[kind])


def expression(generator: random.Random, depth: int = 0) -> tuple[str, str]:
    """An expression with operators between their operands, and behind them."""
    if depth == 3 or (depth and generator.random() < 0.4):
        leaf = generator.choice(string.ascii_lowercase)
        return leaf, leaf
    (left, left_after), (right, right_after) = expression(generator, depth + 1), expression(generator, depth + 1)
    sign = generator.choice("+-*/")
    return f"({left}{sign}{right})", f"{left_after}{right_after}{sign}"


def permute(generator: random.Random, alphabet: str) -> tuple[str, str]:
    """Words in the order that numbers say."""
    given = words(generator, 6)
    order = list(range(1, len(given) + 1))
    generator.shuffle(order)
    return f"{' '.join(map(str, order))} | {' '.join(given)}", " ".join(given[i - 1] for i in order)


def edit(generator: random.Random, alphabet: str) -> tuple[str, str]:
    """A string with an error, and the string before it as it stands in a list."""
    listed = words(generator, 5)
    right = generator.choice(listed)
    place = generator.randrange(len(right))
    wrong = right[:place] + generator.choice(["", generator.choice(string.ascii_lowercase)]) + right[place + 1 :]
    return f"{' '.join(listed)} | {wrong}", right


RULES: dict[str, Rule] = dict(
    [
        plain("copy", lambda s: s),
        plain("reverse", lambda s: s[::-1]),
        plain("sort", lambda s: "".join(sorted(s))),
        plain("unique", lambda s: "".join(dict.fromkeys(s))),
        plain("upper", str.upper),
        plain("spell", " ".join),
        plain("join", lambda s: "".join(s.split())),
        plain("every second", lambda s: s[::2]),
        plain("twice", lambda s: f"{s} {s}"),
        plain("last first", lambda s: s[-1] + s[:-1]),
        plain("swap words", lambda s: " ".join(reversed(s.split()))),
        plain("sort words", lambda s: " ".join(sorted(s.replace(",", " ").replace("-", " ").split()))),
        plain("first letters", lambda s: "".join(w[0] for w in s.replace(",", " ").replace("-", " ").split())),
        plain("runs", runs),
        plain("depths", depths),
        plain("only letters", lambda s: "".join(c for c in s if c.isalpha()) or "-"),
        plain("brackets", lambda s: "".join(c for c in s if c in OPENING + CLOSING) or "-"),
        plain("length", lambda s: str(len(s))),
        ("substitute", substitute),
        ("look up", look_up),
        ("replace", replace),
        ("rewrite", rewrite),
        ("arithmetic", arithmetic),
        ("postfix", lambda generator, alphabet: expression(generator)),
        ("infix", lambda generator, alphabet: expression(generator)[::-1]),
        ("permute", permute),
        ("edit", edit),
    ]
)


def sentence(generator: random.Random, documents: list[str]) -> list[str]:
    """Some words in a row of a document."""
    found = generator.choice(documents).split()
    start = generator.randrange(max(1, len(found) - 8))
    return found[start : start + generator.randint(6, 20)]


def missing(generator: random.Random, documents: list[str]) -> tuple[str, str]:
    """One to three words of a sentence are left out; the answer is what they were."""
    given = sentence(generator, documents)
    start = generator.randrange(len(given))
    end = start + generator.randint(1, 3)
    return f"fill: {' '.join([*given[:start], '_', *given[end:]])}", " ".join(given[start:end])


def mend(generator: random.Random, documents: list[str]) -> tuple[str, str]:
    """A sentence with some characters lost, doubled or exchanged, and the sentence."""
    right = " ".join(sentence(generator, documents)[:12])
    characters = list(right)
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(characters))
        characters[place] = generator.choice(["", characters[place] * 2, generator.choice(string.ascii_lowercase)])
    return f"mend: {''.join(characters)}", right


def go_on(generator: random.Random, documents: list[str]) -> tuple[str, str]:
    """The first words of a sentence, and the rest."""
    given = sentence(generator, documents)
    cut = generator.randint(1, max(1, len(given) // 2))
    return f"go on: {' '.join(given[:cut])}", " ".join(given[cut:])


def meaning(generator: random.Random, documents: list[str]) -> tuple[str, str]:
    """A gloss and the words that it explains, or the other way round (entries of WordNet)."""
    named, _, gloss = generator.choice(documents).partition(": ")
    return (f"meaning: {gloss}", named) if generator.random() < 0.5 else (f"explain: {named}", gloss)


def english(generator: random.Random, texts: dict[str, list[str]]) -> tuple[str, str]:
    """A row of one of the four kinds, from a text that has it."""
    kind = generator.choice([missing, mend, go_on, meaning])
    name = "wordnet" if kind is meaning else generator.choice(list(texts))
    return kind(generator, texts[name])


def row(generator: random.Random) -> tuple[str, str]:
    """A question and its answer; the rule is named, or shown on two other strings."""
    name = generator.choice(list(RULES))
    alphabet = "".join(generator.sample(string.ascii_letters + string.digits + SYMBOLS, generator.randint(3, 12)))
    given, answer = RULES[name](generator, alphabet)
    if generator.random() < 0.6:
        return f"{name}: {given}", answer
    shown = [RULES[name](generator, alphabet) for _ in range(2)]
    return "\n".join([*("\n".join(pair) for pair in shown), given]), answer


def main() -> None:
    """Write rows that differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--text", type=Path, required=True, help="the folder that corpus.py wrote")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator, seen = random.Random(arguments.seed), set[str]()
    texts = {path.stem: path.read_text("utf-8").split("\n\n") for path in sorted(arguments.text.glob("*.txt"))}
    with arguments.file.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["input", "output"])
        while len(seen) < arguments.rows:
            given, answer = english(generator, texts) if generator.random() < ENGLISH else row(generator)
            if given not in seen and answer.strip() and len(given) + len(answer) <= MOST:
                seen.add(given)
                writer.writerow([given, answer])
    print(f"{arguments.file}: {len(seen):,} rows, {len(RULES)} rules")


if __name__ == "__main__":
    main()
