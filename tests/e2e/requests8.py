"""Eight requests, greedy and sampled, short and long, for tests that serve the same ones in several ways."""

LONG = " ".join("The runner number %d waited for the baton near the %s line." % (i, word)
                for i, word in enumerate("start red blue long old wet green last".split()))
PROMPTS = ["Once upon a time", "The relay team", LONG, "In the morning Anna and"]


def requests():
    cases = []
    for index, prompt in enumerate(PROMPTS):
        base = ["--prompt=" + prompt, "--max-tokens=32", "--ignore-eos"]
        cases.append(base + ["--temperature=0"])
        cases.append(base + ["--temperature=0.9", "--top-p=0.95", "--seed=%d" % (7 + index)])
    return cases


def ids(answers):
    return [[sequence["token_ids"] for sequence in answer["sequences"]] for answer in answers]
