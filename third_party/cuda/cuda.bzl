"""Finds a CUDA toolkit on this machine, without being told, and goes on without one.

The rule makes the repository @cuda:
    @cuda//:defs.bzl    CUDA_FOUND, CUDA_ROOT (absolute), CUDA_MISSING (why not, for a person), CUDA_ARCHS
    @cuda//:headers     the toolkit's headers; empty where there is none

Sought in this order: $CUDA_HOME, nvcc in PATH, /usr/local/cuda, and .cuda of this repository, which
`deploy/install_deps.sh cuda` makes. A toolkit is one only with nvcc, the headers of the driver and of cuBLASLt,
and a g++ for nvcc to preprocess with. Bazel looks once; `bazel sync --configure` looks again.
BATON_CUDA_ARCHS="90a" (with --repo_env) compiles the kernels for that alone, for whoever works on them: all
architectures take some minutes of two cores.
BATON_CUDA=off does not look; BATON_CUDA=required (--config=cuda) fails where nothing is found.
"""

# What a data centre has, lowest first. sm_90a is Hopper with its own instructions (wgmma).
_ARCHS = "80 89 90a 100"

_NEEDED = ["bin/nvcc", "include/cuda.h", "include/cublasLt.h", "include/crt/host_config.h"]

def _candidates(ctx):
    roots = []
    home = ctx.os.environ.get("CUDA_HOME", "")
    if home:
        roots.append(ctx.path(home))
    nvcc = ctx.which("nvcc")
    if nvcc:
        roots.append(nvcc.realpath.dirname.dirname)
    roots.append(ctx.path("/usr/local/cuda"))
    roots.append(ctx.path(Label("//:WORKSPACE")).dirname.get_child(".cuda"))
    return roots

def _find(ctx):
    """Returns (root, "") or (None, why not)."""
    wish = ctx.os.environ.get("BATON_CUDA", "")
    if wish == "off":
        return None, "BATON_CUDA=off"
    if not ctx.which("g++"):
        return None, "nvcc needs a g++, and none is in PATH"
    lacking = []
    for root in _candidates(ctx):
        missing = [name for name in _NEEDED if not ctx.path("%s/%s" % (root, name)).exists]
        if not missing:
            return root.realpath, ""
        if len(missing) < len(_NEEDED):
            lacking.append("%s lacks %s" % (root, " and ".join(missing)))
    return None, "; ".join(lacking) or "no nvcc in CUDA_HOME, PATH, /usr/local/cuda or .cuda"

def _cuda_repository_impl(ctx):
    root, why = _find(ctx)
    if not root and ctx.os.environ.get("BATON_CUDA", "") == "required":
        fail("CUDA was asked for and is not here: %s. `deploy/install_deps.sh cuda` fetches a toolkit." % why)
    ctx.file("defs.bzl", "\n".join([
        "CUDA_FOUND = %s" % bool(root),
        "CUDA_ROOT = %s" % repr(str(root) if root else ""),
        "CUDA_MISSING = %s" % repr(why),
        "CUDA_ARCHS = %s" % repr(ctx.os.environ.get("BATON_CUDA_ARCHS", _ARCHS).split(" ")),
        "",
    ]))
    if root:
        ctx.symlink(root.get_child("include"), "include")

    # The headers of libraries lie side by side; cccl and other C++ trees are left out: we use none of them.
    ctx.file("BUILD", """
cc_library(
    name = "headers",
    hdrs = glob(["include/*.h", "include/*.hpp", "include/crt/*"], allow_empty = True),
    includes = ["include"],
    visibility = ["//visibility:public"],
)
""")

cuda_repository = repository_rule(
    implementation = _cuda_repository_impl,
    environ = ["PATH", "CUDA_HOME", "BATON_CUDA", "BATON_CUDA_ARCHS"],
    local = True,
    configure = True,
)
