"""Trains the small tokenizers of this folder and stores what Hugging Face tokenizers makes of
a set of hard texts.

    python3 make_tokenizers.py

Each folder NAME gets tokenizer.json and cases.json; both are stored in the repository, so that
the tests need neither this script nor its library. The text to train on is this file's own.
A case has `text`, or `unit` and `times` for a long one; `ids` with special tokens recognised,
`ids_plain` where taking them for text differs, or for long texts `count` and `fnv` (FNV-1a 64
over the little-endian ids); `decoded` and `decoded_skip` are the texts of the ids. The first
case object holds `before` and `after`: what goes around a text.
"""
import json
import os
import random

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))

SENTENCES = """
The router hands the baton to the prefill node, and the prefill node hands it to the decode node.
A block of the cache has one owner at every moment; nobody else writes to it.
It's late, and they've said that we'll wait: isn't that what you'd expect? I'm sure he'd agree.
Every token costs 12.5 microseconds, 3,000 tokens cost 37.5 milliseconds, and 1,000,000 cost 12 seconds.
for (size_t i = 0; i < count; i++) { sum += values[i] * weights[i]; }
if x_count >= 10 and not done:\n    return {"name": "baton", "ok": True}\n
Der Läufer übergibt den Stab; die Straße ist naß, doch er stürzt nicht.
Le coureur passe le témoin à l'équipe; où est-elle allée, déjà fatiguée?
El corredor pasó el testigo mañana por la mañana. ¿Cuándo llegará?
Бегун передаёт эстафету, а дорога мокрая и длинная.
Ο δρομέας δίνει τη σκυτάλη στον επόμενο.
走者把接力棒交给下一个人，道路又湿又长。
走者は次の人にバトンを渡します。道は長いです。
주자가 다음 사람에게 바통을 넘깁니다.
الرياضي يسلم العصا إلى زميله.
הרץ מעביר את השרביט לחברו.
धावक अगले व्यक्ति को छड़ी देता है।
นักวิ่งส่งไม้ต่อให้คนถัดไป
Chạy tiếp sức: người chạy trao gậy cho người kế tiếp.
🏃 runs, 👩‍👩‍👧 cheers, 🏳️‍🌈 waves, 😀😀😀 laughs.
""".strip().split("\n")

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CASED = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def training_text():
    rng = random.Random(1)
    words = [word for line in SENTENCES for word in line.split(" ")]
    lines = list(SENTENCES)
    for _ in range(400):
        lines.append(" ".join(rng.choice(words) for _ in range(rng.randrange(3, 12))))
    return [line.replace("\\n", "\n") for line in lines]


HARD = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\t\t\t", " \n \n ", "a", " a", "a ", " a ", "  a", "a  ", "a  b", "a   b",
    "hello world", "Hello, World!", "  leading", "trailing  ", "tabs\tand\nlines\r\nmixed\r", "a\u00a0b", "a\u3000b", "a\u2003\u2003b",
    "a\u200bb", "a\u180eb", "a\u0085b", "a\x0bb\x0cc", "a\u2028b\u2029c", "\u00a0", " \u00a0 ", "\ufeffbom", "a\x00b", "\x00", "\x1f\x7f\x80",
    "don't DON'T we'll WE'LL I've I'd I'm you're 'tis 's 'S 'ſ 'K it\u2019s", "''s''t", "x's's", "'", "''", "'''",
    "0", "12", "123", "1234", "12345678901234567890", "1 2 3", "1,234.56", "1e-9", "0x1F", "²³¹", "½¼", "Ⅷ ⅷ", "٣٤٥", "१२३", "一二三", "①②③", "𝟘𝟙𝟚",
    "a1b2c3", "x_y", "foo_bar__baz", "snake_case CamelCase mixedCASE HTTPServer iOS McDonald ÉCOLE École", "e.g. i.e.", "...", "!!!", "?!", "a.b", "(a)[b]{c}",
    "#!/bin/sh\n\techo \"$HOME\" | grep -v '^#' && exit 1 # done\n", "if (a<b && c>d) { return \"x\"; }", "C:\\path\\to\\file", "https://example.com/a?b=c&d=%20#e", "a@b.c", "$5.00 €7 £8 ¥9 ₹10", "<html><br/></html>",
    "Straße STRASSE ẞ ß", "naïve café", "nai\u0308ve cafe\u0301", "A\u030a Å Å", "\u0301a", "a\u0301\u0301\u0301", "q\u0307\u0323 q\u0323\u0307", "\u1e9b\u0323", "ﬁ ﬂ ﬀ ſt", "ＡＢＣ１２３", "ﾊﾝｶｸ", "㍿ ㌀ ㏂", "ǅ ǆ Ǆ", "İstanbul ıI iİ", "ΑΒΓ αβγ ς Σ", "ᾳ ᾼ ΐ",
    "привет мир ПРИВЕТ", "Ё ё Е\u0308", "你好，世界！", "世界 你好", "こんにちは世界", "カタカナ ｶﾀｶﾅ", "が か\u3099", "안녕하세요 세계", "\u1112\u1161\u11ab", "한\u11ab", "\u1100\u1161 \u1100\uac00", "שלום עולם", "שָׁלוֹם", "\u05e9\u05bc\u05c1 \u05e9\u05c1\u05bc", "مرحبا بالعالم", "اَلسَّلَامُ", "नमस्ते दुनिया", "क\u093cख\u0958", "สวัสดีชาวโลก", "ဟယ်လို", "ជំរាបសួរ", "ሰላም", "გამარჯობა", "Բարեւ", "ᏣᎳᎩ", "ᐃᓄᒃᑎᑐᑦ", "ꦧꦱ", "𐌰𐌱 𐍈", "𓀀𓁐", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𠀀𠀁 𪛖", "\U00031350\U000323af 㐀", "\U00016ea0\U00016ebb", "\ua7cb \ua7da \u1c89\u1c8a", "\u0897a \u0c3cb \u0ece", "\U0001e6c0 \U000105c0", "\U00011f00 \U0001e4d0",
    "😀", "😀😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "1️⃣", "☃️ ☃", "a😀b", " 😀 ", "\u200d", "❤️‍🔥", "\U0001fae8 \U0001fadf",
    "\ud7ff\ue000\uffff", "\ufdd0\ufffe", "\U0010ffff\U000e0041", "\ufffd", "\u00ad soft", "\u202eltr", "e\u0301" * 5, "Z" + "\u0300\u0316\u0345\u0334" * 9, "\u0323\u0307" * 20 + "a",
    "▁", "▁▁", "a▁b", "▁a ▁b", " ▁", "Ġ", "Ċ", "Ġthe", "Ã©", "<0x41>", "<0xE4>", "<0xZZ>", "<unk>", "##a", "a</w>", "</w>",
    "<s>", "</s>", "a<s>b", "a <s> b", "<s><s>", "  <s>  ", "<|end|>", "x <|end|>  y", "<|end|><|end|>", "<|en", "<|end", "a<|end|>\n\n<|end|>b", "[MASK]", "a [MASK] b", "a[MASK]b", "[MASK][MASK]", " [MASK] ", "<tool>", "x<tool>y", "x <tool> y",
    "Word", "word", "aWord", "Word1", "Word.", " Word ", "WORD word Word", "<left> <right>", "a  <left>  b  <right>  c", "\u00a0<left>\u3000<right>\u2003", "<right>    x", "        ", "x        y", "         \n        ", "é<s>é", "<S>", "<|END|>", "WÖRD Wörd", "wo\u0308rd",
] + ["".join(chr(c) for c in range(start, start + 64) if not 0xd800 <= c < 0xe000 and (c > 31 or start))
     for start in (0x20, 0x60, 0xa0, 0xe0, 0x100, 0x240, 0x2b0, 0x300, 0x370, 0x400, 0x530, 0x590, 0x620, 0x660, 0x900, 0x980, 0xe00, 0x10a0,
                   0x1100, 0x1160, 0x11a8, 0x13a0, 0x1780, 0x1e00, 0x1f80, 0x2000, 0x2040, 0x2060, 0x20a0, 0x2100, 0x2150, 0x2460, 0x2500, 0x3000, 0x3040,
                   0x30a0, 0x3300, 0x4e00, 0xa640, 0xac00, 0xd7c0, 0xf900, 0xfb00, 0xfb40, 0xfe00, 0xff00, 0xff40, 0x10300, 0x10400, 0x11000, 0x1d400, 0x1d7c0, 0x1f300,
                   0x1f600, 0x1f900, 0x20000, 0x2f800, 0xe0000)]

LONG = [("a", 100_000), ("ab", 50_000), ("Abc9", 25_000), (" ", 100_000), ("\n", 50_000), ("你", 33_000), ("é", 50_000), ("e\u0301", 20_000),
        ("😀", 25_000), ("\u0345\u0316\u0301", 10_000), ("=", 100_000), ("1", 100_000), ("the baton ", 10_000), ("x<s>", 5_000), ("▁", 30_000),
        ("' ", 20_000), ("a\u0323\u0307 ", 5_000), ("\r\n \n", 10_000)]


def specials(*names):
    return [AddedToken(name, special=True, normalized=False) for name in names]


def train(tokenizer, size, special, alphabet=(), **options):
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False,
                                  initial_alphabet=list(alphabet), **options)
    tokenizer.train_from_iterator(training_text(), trainer)
    return tokenizer


BYTES = pre_tokenizers.ByteLevel.alphabet()


def gpt2():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return train(t, 700, specials("<|end|>"), BYTES)


def llama3():
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    train(t, 640, [], BYTES)
    t.add_special_tokens(specials("<s>", "</s>", "<|end|>"))
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", t.token_to_id("<s>"))])])
    return t


def qwen():
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    train(t, 640, [], BYTES)
    t.add_special_tokens(specials("<|end|>", "<s>"))
    t.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("Wörd", normalized=True)])
    return t


def sentence_piece():
    """Byte fallback and merges as SentencePiece trains them: words are cut at spaces only."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    train(t, 900, names, limit_alphabet=180)
    data = json.loads(t.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] < 3]
    data["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(data))


def llama2():
    t = sentence_piece()
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    return t


def metaspace_first():
    t = sentence_piece()
    t.normalizer = None
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    t.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False, rstrip=True)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair="$A $B",
                                                     special_tokens=[("<s>", 1), ("</s>", 2)])
    return t


def metaspace_always():
    t = Tokenizer(models.BPE(unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=False, right=True)])
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    t.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return train(t, 700, specials("<unk>", "<s>", "</s>"), limit_alphabet=150)


def digits():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    train(t, 560, specials("<|end|>"), BYTES)
    t.add_special_tokens([AddedToken("<left>", lstrip=True, normalized=False), AddedToken("<right>", rstrip=True, normalized=False),
                          AddedToken("[MASK]", lstrip=True, rstrip=True, normalized=False)])
    t.add_tokens([AddedToken("Word", single_word=True, normalized=False), AddedToken("<tool>")])
    return t


def neox():
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    train(t, 560, specials("<s>", "</s>", "<|end|>"), BYTES)
    t.add_tokens([AddedToken(" " * n, normalized=True) for n in range(8, 1, -1)])
    return t


def cased():
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Replace(Regex(r"\d{4,}+"), "#")
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{Han}+|[぀-ヿ]+"), "merged_with_previous"),
        pre_tokenizers.Split(Regex(CASED), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.Sequence([decoders.ByteLevel()])
    return train(t, 600, specials("<|end|>"), BYTES)


def accents():
    """As the first GPT and CLIP: lowercase, and a suffix on a word's last piece."""
    t = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", fuse_unk=False))
    t.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(),
                                         normalizers.Replace(Regex(r"\s+"), " ")])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits()])
    t.decoder = decoders.BPEDecoder("</w>")
    train(t, 700, specials("<unk>", "<|end|>"), end_of_word_suffix="</w>", limit_alphabet=120)
    t.add_tokens([AddedToken("[mask]", normalized=True), AddedToken("word", normalized=True, single_word=True)])
    return t


def word_pieces():
    t = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##", fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Nmt()])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(),
                                               pre_tokenizers.Punctuation("contiguous"),
                                               pre_tokenizers.Split("e", "merged_with_next")])
    t.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    train(t, 700, specials("<unk>", "<s>"), continuing_subword_prefix="##", limit_alphabet=120)
    return t


def splits():
    t = Tokenizer(models.BPE(unk_token="<unk>"))
    t.normalizer = normalizers.Prepend("_")
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"[[:punct:]]|\h{4}|\bthe\b"), "contiguous"),
                                               pre_tokenizers.Split(Regex(r"\w{2,5}?[a-z]"), "merged_with_previous"),
                                               pre_tokenizers.Split(".", "merged_with_next"),
                                               pre_tokenizers.CharDelimiterSplit("q")])
    t.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    return train(t, 500, specials("<unk>", "<s>", "</s>"), limit_alphabet=110)


def fnv(ids):
    value = 0xcbf29ce484222325
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        value = ((value ^ byte) * 0x100000001b3) & 0xffffffffffffffff
    return f"{value:016x}"


def cases(t):
    def encode(text, plain=False, special=False):
        t.encode_special_tokens = plain
        return t.encode(text, add_special_tokens=special).ids

    around = encode("a", special=True)
    inner = encode("a")
    at = next(i for i in range(len(around)) if around[i:i + len(inner)] == inner)
    out = [{"library": "tokenizers " + tokenizers.__version__, "before": around[:at], "after": around[at + len(inner):]}]
    for text in HARD:
        ids, plain = encode(text), encode(text, plain=True)
        case = {"text": text, "ids": ids, "decoded": t.decode(ids, skip_special_tokens=False) if ids else "",
                "decoded_skip": t.decode(ids) if any(not is_special(t, i) for i in ids) else ""}
        if plain != ids:
            case["ids_plain"] = plain
        out.append(case)
    for unit, times in LONG:
        ids = encode(unit * times)
        out.append({"unit": unit, "times": times, "count": len(ids), "fnv": fnv(ids)})
    return out


def is_special(t, token):
    return token in t.get_added_tokens_decoder() and t.get_added_tokens_decoder()[token].special


def main():
    for make in (gpt2, llama3, qwen, llama2, metaspace_first, metaspace_always, digits, neox, cased, accents,
                 word_pieces, splits):
        folder = os.path.join(HERE, make.__name__)
        os.makedirs(folder, exist_ok=True)
        data = json.loads(make().to_str())
        if make in (gpt2, llama2):  # as older files have them
            data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
        path = os.path.join(folder, "tokenizer.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(data, file, ensure_ascii=make is not qwen, separators=(",", ":"))
            file.write("\n")
        with open(os.path.join(folder, "cases.json"), "w", encoding="utf-8") as file:
            rows = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases(Tokenizer.from_file(path)))
            file.write("[" + rows + "]\n")
        print(make.__name__, os.path.getsize(path))


if __name__ == "__main__":
    main()
