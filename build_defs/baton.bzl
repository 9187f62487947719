"""The few rules every BUILD file of Baton uses: one set of warnings, one shape of test."""

OUR_COPTS = [
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Werror",
    "-Wshadow",
    "-Wstrict-prototypes",
    "-Wmissing-prototypes",
    "-Wvla",
    "-Wno-unknown-warning-option",
]

def baton_library(name, copts = [], **kwargs):
    """One header pair."""
    native.cc_library(name = name, copts = OUR_COPTS + copts, linkstatic = True, **kwargs)

def baton_binary(name, copts = [], **kwargs):
    native.cc_binary(name = name, copts = OUR_COPTS + copts, **kwargs)

def baton_test(name, srcs = None, deps = [], copts = [], size = "small", **kwargs):
    """A cmocka test; name is the file's name without .c."""
    native.cc_test(
        name = name,
        srcs = srcs or [name + ".c"],
        copts = OUR_COPTS + copts,
        size = size,
        linkstatic = True,
        deps = deps + ["//third_party:cmocka"],
        **kwargs
    )

def baton_fuzz_test(name, deps, srcs = None, corpus = None, seconds = 20, size = "medium", **kwargs):
    """A fuzz target `LLVMFuzzerTestOneInput` in <name>.c over corpus/<name>/.

    A plain build replays the corpus, each file once. With --config=fuzz libFuzzer starts
    from the corpus and searches for `seconds`.
    """
    files = corpus or native.glob(["corpus/" + name + "/**"])
    where = native.package_name() + "/corpus/" + name
    native.cc_test(
        name = name,
        srcs = (srcs or [name + ".c"]),
        copts = OUR_COPTS + ["-Wno-missing-prototypes"],
        size = size,
        linkstatic = True,
        data = files,
        args = select({
            "//build_defs:fuzzing": ["-max_total_time=%d" % seconds, "-timeout=10", "-rss_limit_mb=2048", "{TEST_TMPDIR}", where],
            "//conditions:default": [where],
        }),
        linkopts = select({
            "//build_defs:fuzzing": ["-fsanitize=fuzzer"],
            "//conditions:default": [],
        }),
        deps = deps + select({
            "//build_defs:fuzzing": ["//tests/fuzz:fuzz_init"],
            "//conditions:default": ["//tests/fuzz:replay_main"],
        }),
        tags = ["fuzz"],
        **kwargs
    )

def protobuf_c_library(name, proto, deps = [], imports = [], **kwargs):
    """Messages of one .proto by protoc-c; include as "<package>/<stem>.pb-c.h".

    imports: labels of the .proto files that `proto` imports, which protoc-c must see.
    """
    stem = proto[:-len(".proto")]
    native.genrule(
        name = name + "_gen",
        srcs = [proto] + imports,
        outs = [stem + ".pb-c.c", stem + ".pb-c.h"],
        cmd = "protoc-c -I. --c_out=$(BINDIR) $(location %s)" % proto,
    )
    native.cc_library(
        name = name,
        srcs = [stem + ".pb-c.c"],
        hdrs = [stem + ".pb-c.h"],
        linkstatic = True,
        deps = deps + ["//third_party:protobuf_c"],
        **kwargs
    )
