"""tokenizer_pipe as a Python object."""
import struct
import subprocess


class TokenProcess:
    def __init__(self, program, directory):
        self.process = subprocess.Popen([program, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE)

    def call(self, operation, flags, payload):
        try:
            self.process.stdin.write(operation + struct.pack("<BI", flags, len(payload)) + payload)
            self.process.stdin.flush()
            head = self.process.stdout.read(5)
            code, size = struct.unpack("<BI", head)
        except (BrokenPipeError, struct.error):
            raise SystemExit("tokenizer_pipe ended: " + self.process.stderr.read().decode())
        body = self.process.stdout.read(size)
        if code:
            raise ValueError(f"status {code}: {body.decode()}")
        return body

    def encode(self, text, add_special=False, parse_special=True):
        data = text.encode() if isinstance(text, str) else text
        body = self.call(b"e", int(add_special) | int(parse_special) << 1, data)
        return list(struct.unpack(f"<{len(body) // 4}I", body))

    def decode(self, ids, skip_special=False):
        return self.call(b"d", int(skip_special), struct.pack(f"<{len(ids)}I", *ids)).decode()

    def pieces(self, ids, skip_special=False):
        body = self.call(b"s", int(skip_special), struct.pack(f"<{len(ids)}I", *ids))
        out, at = [], 0
        while at < len(body):
            (size,) = struct.unpack_from("<I", body, at)
            out.append(body[at + 4:at + 4 + size].decode())  # raises where half a character came
            at += 4 + size
        return out

    def encode_ns(self, text, times):
        body = self.call(b"b", times, text.encode())
        return list(struct.unpack(f"<{times}Q", body))

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()
