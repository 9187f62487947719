"""Descriptors of .proto files as C arrays, for server reflection."""

load("//build_defs:baton.bzl", "OUR_COPTS")

def proto_descriptor_library(name, proto, imports = [], visibility = None, **kwargs):
    """A serialized FileDescriptorSet of `proto` and all it imports.

    Gives "<package>/<name>.h" with `extern const unsigned char <name>[]` and
    `extern const unsigned long <name>_len`. File names in it start below proto/, as the
    standard services are named ("grpc/health/v1/health.proto").
    imports: labels of the .proto files that `proto` imports.
    """
    native.genrule(
        name = name + "_gen",
        srcs = [proto] + imports,
        outs = [name + ".c", name + ".h"],
        # od prints the bytes and awk makes them C: both are POSIX, nothing to install.
        cmd = """
            set -e
            protoc -Iproto --include_imports --descriptor_set_out=$(RULEDIR)/{name}.set $(location {proto})
            echo '#include "{package}/{name}.h"' > $(location {name}.c)
            echo 'const unsigned char {name}[] = {{' >> $(location {name}.c)
            od -An -v -tu1 $(RULEDIR)/{name}.set | awk '{{ for (i = 1; i <= NF; i++) printf "%s,", $$i; print "" }}' >> $(location {name}.c)
            echo '}};' >> $(location {name}.c)
            echo 'const unsigned long {name}_len = sizeof {name};' >> $(location {name}.c)
            echo '/* Generated from {proto}. */' > $(location {name}.h)
            echo 'extern const unsigned char {name}[];' >> $(location {name}.h)
            echo 'extern const unsigned long {name}_len;' >> $(location {name}.h)
            rm $(RULEDIR)/{name}.set
        """.format(name = name, proto = proto, package = native.package_name()),
    )
    native.cc_library(
        name = name,
        srcs = [name + ".c"],
        hdrs = [name + ".h"],
        copts = OUR_COPTS,
        linkstatic = True,
        visibility = visibility,
        **kwargs
    )
