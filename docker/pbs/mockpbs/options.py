"""Options as getopt(3) finds them; the library's getopt imports gettext, twice the time that a command may take."""


class Wrong(Exception):
    """An option that does not exist, or lacks its value: `letter` (of --word the word), `words` as getopt(3) prints."""

    def __init__(self, letter, words):
        self.letter, self.words = letter, words
        super().__init__(letter, words)


def parse(args, letters, anywhere=False):
    """([(letter, value)], operands). In `letters` a colon follows those with a value; the others' value is "".

    Reading ends at the first operand, as in POSIX; with `anywhere` options may follow operands, as in GNU."""
    pairs, operands, rest = [], [], list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            break
        if word == "-" or not word.startswith("-"):
            operands.append(word)
            if not anywhere:
                break
        elif word.startswith("--"):
            raise Wrong(word[2:].partition("=")[0], "invalid option")
        else:
            pairs += taken(word[1:], rest, letters)
    return pairs, operands + rest


def taken(word, rest, letters):
    """The options of one word; the value of its last one may be the next word, which is taken from `rest`."""
    pairs = []
    while word:
        letter, word = word[0], word[1:]
        if letter == ":" or letter not in letters:
            raise Wrong(letter, "invalid option")
        value = ""
        if letter + ":" in letters:
            if not word and not rest:
                raise Wrong(letter, "option requires an argument")
            value, word = word or rest.pop(0), ""
        pairs.append((letter, value))
    return pairs


def is_word(text, marks):
    """Whether it is letters, digits and these marks, and not empty."""
    return bool(text) and all(letter.isalnum() or letter in marks for letter in text)
