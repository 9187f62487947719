"""gRPC's own Python client against rpc/: calls of all kinds, health, reflection.

Usage: rpc_standard_client.py SERVER_BINARY. Needs grpcio, grpcio-health-checking and
grpcio-reflection; without them it says so and passes.
"""
import subprocess
import sys
import threading
import unittest

try:
    import grpc
    from google.protobuf import descriptor_pb2
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
except ImportError as missing:
    print(f"SKIPPED: {missing}; install grpcio, grpcio-health-checking and grpcio-reflection to run this test")
    sys.exit(0)

SERVER = sys.argv.pop(1)


class StandardClient(unittest.TestCase):
    def setUp(self):
        self.server = subprocess.Popen([SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{int(self.server.stdout.readline())}")

    def tearDown(self):
        self.channel.close()
        self.server.stdin.close()
        self.assertEqual(self.server.wait(timeout=30), 0)
        self.server.stdout.close()

    def test_unary(self):
        """One message there and back, small, empty and large."""
        echo = self.channel.unary_unary("/test.T/Echo")
        for size in (0, 1, 100_000, 3_000_000):
            self.assertEqual(echo(b"x" * size, timeout=20), b"x" * size)

    def test_streams(self):
        """Client, server and both-way streams keep order and count."""
        messages = [str(i).encode() for i in range(500)]
        echo = self.channel.stream_stream("/test.T/Echo")
        self.assertEqual(list(echo(iter(messages), timeout=20)), messages)
        one = self.channel.unary_stream("/test.T/Echo")
        self.assertEqual(list(one(b"a", timeout=20)), [b"a"])

    def test_errors(self):
        """Code, message and trailing metadata arrive; an unknown method is UNIMPLEMENTED."""
        with self.assertRaises(grpc.RpcError) as raised:
            self.channel.unary_unary("/test.T/Fail")(b"", timeout=20, metadata=(("authorization", "Bearer me"),))
        self.assertEqual(raised.exception.code(), grpc.StatusCode.PERMISSION_DENIED)
        self.assertEqual(raised.exception.details(), "not you, h\u00e9")
        self.assertIn(("x-who", "Bearer me"), [tuple(pair) for pair in raised.exception.trailing_metadata()])
        with self.assertRaises(grpc.RpcError) as raised:
            self.channel.unary_unary("/test.T/None")(b"", timeout=20)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_compressed_messages(self):
        """A client that compresses is understood."""
        echo = self.channel.unary_unary("/test.T/Echo")
        self.assertEqual(echo(b"z" * 50_000, timeout=20, compression=grpc.Compression.Gzip), b"z" * 50_000)

    def test_health(self):
        """Check, Watch and List with the standard stubs."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        ask = health_pb2.HealthCheckRequest
        self.assertEqual(stub.Check(ask(service="test.T"), timeout=20).status, serving)
        self.assertEqual(stub.Check(ask(), timeout=20).status, health_pb2.HealthCheckResponse.NOT_SERVING)
        with self.assertRaises(grpc.RpcError) as raised:
            stub.Check(ask(service="nobody"), timeout=20)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)
        watch = stub.Watch(ask(service="test.T"), timeout=20)
        self.assertEqual(next(watch).status, serving)
        threading.Timer(0.05, lambda: (self.server.stdin.write("turn\n"), self.server.stdin.flush())).start()
        self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.NOT_SERVING)
        watch.cancel()
        unknown = stub.Watch(ask(service="nobody"), timeout=20)
        self.assertEqual(next(unknown).status, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        unknown.cancel()
        if hasattr(stub, "List"):
            statuses = stub.List(health_pb2.HealthListRequest(), timeout=20).statuses
            self.assertEqual(set(statuses), {"", "test.T"})

    def test_reflection(self):
        """Services are listed; the files are complete descriptors under their standard names."""
        stub = reflection_pb2_grpc.ServerReflectionStub(self.channel)
        ask = reflection_pb2.ServerReflectionRequest
        questions = [
            ask(list_services=""),
            ask(file_containing_symbol="grpc.health.v1.Health"),
            ask(file_by_filename="grpc/reflection/v1/reflection.proto"),
            ask(file_containing_symbol="no.Such", host="h"),
            ask(all_extension_numbers_of_type="grpc.health.v1.HealthCheckRequest"),
        ]
        answers = list(stub.ServerReflectionInfo(iter(questions), timeout=20))
        self.assertEqual([answer.original_request for answer in answers], questions)
        names = {service.name for service in answers[0].list_services_response.service}
        self.assertEqual(names, {"test.T", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
                                 "grpc.reflection.v1alpha.ServerReflection"})
        ours = descriptor_pb2.FileDescriptorProto.FromString(answers[1].file_descriptor_response.file_descriptor_proto[0])
        self.assertEqual(ours.name, "grpc/health/v1/health.proto")
        standard = descriptor_pb2.FileDescriptorProto()
        health_pb2.DESCRIPTOR.CopyToProto(standard)
        self.assertEqual(self.shape(ours), self.shape(standard))
        alpha = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
        ours = descriptor_pb2.FileDescriptorProto.FromString(answers[2].file_descriptor_response.file_descriptor_proto[0])
        self.assertEqual(self.shape(ours), [line.replace("v1alpha", "v1") for line in self.shape(alpha)])
        self.assertEqual(answers[3].error_response.error_code, grpc.StatusCode.NOT_FOUND.value[0])
        self.assertEqual(answers[4].all_extension_numbers_response.base_type_name, "grpc.health.v1.HealthCheckRequest")

    @staticmethod
    def shape(file):
        """What the wire depends on: packages, messages, fields, numbers, types, methods."""
        lines = [file.package]

        def message(prefix, descriptor):
            for field in descriptor.field:
                lines.append(f"{prefix}{descriptor.name}.{field.name}={field.number} {field.type} {field.label} {field.type_name}")
            for enum in descriptor.enum_type:
                lines.extend(f"{prefix}{descriptor.name}.{enum.name}.{value.name}={value.number}" for value in enum.value)
            for nested in descriptor.nested_type:
                message(f"{prefix}{descriptor.name}.", nested)

        for descriptor in file.message_type:
            message("", descriptor)
        for service in file.service:
            for method in service.method:
                lines.append(f"{service.name}.{method.name} {method.input_type} {method.output_type} "
                             f"{method.client_streaming} {method.server_streaming}")
        return sorted(lines)


if __name__ == "__main__":
    unittest.main(verbosity=1)
