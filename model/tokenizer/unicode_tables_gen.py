"""Writes unicode_tables.h: the character classes that ids depend on, as Hugging Face
tokenizers sees them.

The classes are asked of the library itself, code point by code point, because its parts
carry different versions of Unicode: its regular expressions (Oniguruma) know Unicode 16,
its Punctuation an old one, its normal forms 12. Ours are PCRE2 10.42 (Unicode 14) and
utf8proc 2.8 (Unicode 15), so a character that is a letter for one may be unassigned for
the other. Run with a Python that has `tokenizers` and unicodedata of Unicode 14 (3.11):
    python3 unicode_tables_gen.py > unicode_tables.h
"""
import ctypes
import sys
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
BATCH = 4096

assert unicodedata.unidata_version.startswith("14."), "PCRE2 10.42 has Unicode 14; so must this Python"
utf8proc = ctypes.CDLL("libutf8proc.so.2")
utf8proc.utf8proc_tolower.restype = ctypes.c_int32
libc = ctypes.CDLL(None)


def batches():
    for i in range(0, len(CODE_POINTS), BATCH):
        yield CODE_POINTS[i:i + BATCH]


def regex_class(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    found = set()
    for batch in batches():
        kept = set()
        for piece, _ in split.pre_tokenize_str("".join(map(chr, batch))):
            kept.update(map(ord, piece))
        found.update(c for c in batch if c not in kept)
    return found


def isolated(pre_tokenizer):
    found = set()
    for batch in batches():
        text = "a" + "a".join(map(chr, batch)) + "a"
        for piece, _ in pre_tokenizer.pre_tokenize_str(text):
            if len(piece) == 1 and piece != "a":
                found.add(ord(piece))
    return found


def words():
    whitespace = pre_tokenizers.Whitespace()
    found = set()
    for c in CODE_POINTS:
        pieces = whitespace.pre_tokenize_str("a" + chr(c))
        if len(pieces) == 1 and len(pieces[0][0]) == 2:
            found.add(c)
    return found


def changed_by(normalizer):
    return {c for c in CODE_POINTS if normalizer.normalize_str("a" + chr(c)) != "a" + chr(c)}


def utf8proc_form(name, c):
    if c == 0:
        return "\0"
    form = getattr(utf8proc, "utf8proc_" + name)
    form.restype = ctypes.c_void_p
    pointer = form(chr(c).encode())
    text = ctypes.string_at(pointer).decode()
    libc.free(ctypes.c_void_p(pointer))
    return text


def undecomposed():
    """Code points that utf8proc takes apart and the library does not."""
    found = set()
    for c in CODE_POINTS:
        for name in ("NFD", "NFKD"):
            ours = utf8proc_form(name, c)
            if ours != chr(c) and getattr(normalizers, name)().normalize_str(chr(c)) != ours:
                found.add(c)
    return found


def starters():
    """Marks that utf8proc reorders and the library, with its older tables, leaves in place."""
    utf8proc.utf8proc_get_property.restype = ctypes.c_void_p
    nfd = normalizers.NFD()
    found = set()
    for c in CODE_POINTS:
        before = "a\u0345" + chr(c)
        ours = utf8proc_form("NFD", c)
        if len(ours) != 1:
            continue
        pointer = None
        form = utf8proc.utf8proc_NFD
        form.restype = ctypes.c_void_p
        if c == 0:
            continue
        pointer = form(before.encode())
        text = ctypes.string_at(pointer).decode()
        libc.free(ctypes.c_void_p(pointer))
        if text != before and nfd.normalize_str(before) == before:
            found.add(c)
    return found


def nfc_unsafe():
    """Code points that may change under NFC, alone or beside others; all others cannot."""
    unsafe = set()
    for c in CODE_POINTS:
        ch = chr(c)
        if unicodedata.combining(ch) or unicodedata.normalize("NFC", ch) != ch:
            unsafe.add(c)
        parts = unicodedata.decomposition(ch).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            unsafe.add(int(parts[1], 16))
    unsafe.update(range(0x1160, 0x1200))  # vowels and tails that join a syllable
    unsafe.update(c for c in CODE_POINTS if c > 0x2FF and chr(c) != normalizers.NFC().normalize_str(chr(c)))
    for c in CODE_POINTS:  # marks newer than this Python
        if c > 0x2FF and utf8proc_form("NFD", c) == chr(c) and c in MARKS:
            unsafe.add(c)
    return unsafe


def ranges(points):
    out = []
    for c in sorted(points):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def write_ranges(name, points, comment):
    print(f"/* {comment} */\nstatic const struct code_range {name}[] = {{")
    line = "   "
    for first, last in ranges(points):
        item = f" {{0x{first:x}, 0x{last:x}}},"
        if len(line) + len(item) > 110:
            print(line)
            line = "   "
        line += item
    print(line + "\n};\n")


def write_map(name, pairs, comment):
    """(first, last, stand-in of the first); the stand-ins of a run are all the same."""
    print(f"/* {comment} */\nstatic const struct code_map {name}[] = {{")
    runs = []
    for c, to in sorted(pairs.items()):
        if runs and runs[-1][1] == c - 1 and runs[-1][2] == to:
            runs[-1][1] = c
        else:
            runs.append([c, c, to])
    line = "   "
    for first, last, to in runs:
        item = f" {{0x{first:x}, 0x{last:x}, 0x{to:x}}},"
        if len(line) + len(item) > 110:
            print(line)
            line = "   "
        line += item
    print(line + "\n};\n")


def stand_ins():
    """For each code point that PCRE2 does not know: one it knows, of the same category,
    script group, Alphabetic property and length in UTF-8."""
    categories = {}
    for name in ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe",
                 "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cn"):
        for c in regex_class(r"\p{%s}" % name):
            categories[c] = name
    alphabetic = regex_class(r"[[:alpha:]]")
    han = regex_class(r"\p{Han}")

    def kind(c):
        length = len(chr(c).encode())
        return (categories[c], c in alphabetic, c in han, length)

    known = {}
    pairs = {}
    for c in CODE_POINTS:
        if categories[c] == unicodedata.category(chr(c)):
            # Caseless pairs would match through their other half; others are safer.
            if chr(c).lower() == chr(c) == chr(c).upper() or kind(c) not in known:
                known.setdefault(kind(c), c)
    for c in CODE_POINTS:
        if categories[c] != unicodedata.category(chr(c)):
            to = known.get(kind(c)) or known.get((kind(c)[0], kind(c)[1], False, kind(c)[3]))
            if to is None:
                for (category, is_alpha, _, length), point in known.items():
                    if category == kind(c)[0] and length == kind(c)[3]:
                        to = point
            if to is None:
                print(f"no stand-in for U+{c:04X} {kind(c)}", file=sys.stderr)
                continue
            pairs[c] = to
    return pairs


def lowercase():
    lower = normalizers.Lowercase()
    pairs = {}
    for c in CODE_POINTS:
        theirs = lower.normalize_str(chr(c))
        if len(theirs) == 1 and ord(theirs) != utf8proc.utf8proc_tolower(c):
            pairs[c] = ord(theirs)
    return pairs


MARKS = changed_by(normalizers.StripAccents())
print("/* unicode_tables: written by unicode_tables_gen.py; do not edit.\n"
      " * Included by unicode_props.c alone. Ranges are sorted and inclusive. */\n"
      "#ifndef BATON_MODEL_TOKENIZER_UNICODE_TABLES_H\n#define BATON_MODEL_TOKENIZER_UNICODE_TABLES_H\n\n"
      "#include <stdint.h>\n\n"
      "struct code_range { uint32_t first, last; };\n"
      "struct code_map { uint32_t first, last, to; };\n")
write_ranges("numeric_ranges", isolated(pre_tokenizers.Digits(True)), "What Digits calls a number.")
write_ranges("punctuation_ranges", isolated(pre_tokenizers.Punctuation("isolated")), "What Punctuation calls one.")
write_ranges("word_ranges", words(), "\\\\w of Whitespace and of single-word added tokens.")
write_ranges("mark_ranges", MARKS, "What StripAccents takes away.")
write_ranges("nfc_unsafe_ranges", nfc_unsafe(), "May change under NFC; a text without these is its own NFC.")
write_ranges("undecomposed_ranges", undecomposed(), "Decomposed by utf8proc but not by the reference.")
write_ranges("starter_ranges", starters(), "Reordered by utf8proc but not by the reference.")
write_map("lowercase_map", lowercase(), "Lowercase where utf8proc says otherwise.")
write_map("pcre2_stand_ins", stand_ins(), "Newer than PCRE2's tables: a character of the same kind for it to see.")
print("#endif")
