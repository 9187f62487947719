"""CUDA kernels: each .cu compiled for the chips by nvcc, and for the emulator of tests/cuda by g++."""

load("@cuda//:defs.bzl", "CUDA_ARCHS", "CUDA_FOUND", "CUDA_ROOT")

def _stem(src):
    return src[:-len(".cu")]

def cuda_kernels(name, srcs, hdrs = [], emulator_deps = [], emulator_copts = [], visibility = None):
    """The .cu files `srcs`, which may include `hdrs` (labels of files, from the root of the repository).

    <name>            a library with the fatbin of every file in it and the table of them, declared in
                      kernels/cuda/fatbin.h; an empty table where there is no nvcc.
    <name>_fatbins    the fatbins as files; empty where there is no nvcc.
    <name>_emulated   the same sources as C++ over the emulator in `emulator_deps`; for tests.
    """
    fatbins = []
    if CUDA_FOUND:
        # The PTX of the lowest is for chips that are none of these: the driver compiles it when it loads.
        gencode = " ".join(["-gencode arch=compute_%s,code=sm_%s" % (arch, arch) for arch in CUDA_ARCHS])
        gencode += " -gencode arch=compute_%s,code=compute_%s" % (CUDA_ARCHS[0], CUDA_ARCHS[0])
        for src in srcs:
            fatbins.append(_stem(src) + ".fatbin")
            native.genrule(
                name = _stem(src) + "_fatbin",
                srcs = [src] + hdrs,
                outs = [_stem(src) + ".fatbin"],
                # nvcc names its temporary files by its process id, which in a sandbox is the same for all: each
                # gets a folder of its own.
                cmd = "export TMPDIR=$$(mktemp -d); trap 'rm -rf $$TMPDIR' EXIT; %s/bin/nvcc --fatbin -std=c++17 -O3 --fmad=false --Werror all-warnings -I. %s -o $@ $(location %s)" % (CUDA_ROOT, gencode, src),
                message = "nvcc",
            )
    native.filegroup(name = name + "_fatbins", srcs = fatbins, visibility = visibility)

    # .incbin takes the files as they are; a C array of megabytes would cost the compiler minutes.
    rows = ["#include \\\"kernels/cuda/fatbin_rows.h\\\""]
    rows += ["CUDA_FATBIN(%s, \\\"$(execpath %s)\\\")" % (_stem(src).replace("/", "_"), _stem(src) + ".fatbin") for src in srcs if fatbins]
    rows.append("CUDA_FATBIN_TABLE")
    rows += ["CUDA_FATBIN_ROW(%s, \\\"%s\\\")" % (_stem(src).replace("/", "_"), src) for src in srcs if fatbins]
    rows.append("CUDA_FATBIN_TABLE_END")
    native.genrule(
        name = name + "_table",
        srcs = fatbins,
        outs = [name + "_table.S"],
        cmd = "printf '%%s\\n' %s > $@" % " ".join(["\"" + row + "\"" for row in rows]),
    )
    native.cc_library(
        name = name,
        srcs = [name + "_table.S"],
        textual_hdrs = fatbins,
        linkstatic = True,
        visibility = visibility,
        deps = ["//kernels/cuda:fatbin"],
    )

    # g++ goes by the ending of a name, and Bazel takes no .cu.
    native.genrule(
        name = name + "_emulated_sources",
        outs = [_stem(src) + "_emulated.cc" for src in srcs],
        cmd = "".join(["echo '#include \"%s/%s\"' > $(location %s_emulated.cc);" % (native.package_name(), src, _stem(src)) for src in srcs]) or ":",
    ) if srcs else None
    native.cc_library(
        name = name + "_emulated",
        testonly = True,
        srcs = [_stem(src) + "_emulated.cc" for src in srcs],
        textual_hdrs = srcs + hdrs,
        copts = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"] + emulator_copts,
        linkstatic = True,
        visibility = visibility,
        deps = emulator_deps,
    )
