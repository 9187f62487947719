"""Writes int4 checkpoints of a small bf16 model, as GPTQ and AWQ lay them out, with Python alone.

The rounding is the plain one, to nearest: what matters here is the layout. Both formats can hold the
same codes, so that a server must say the same with either.
"""
import array
import json
import os
import random
import shutil
import struct

GROUP = 32
AWQ_HOLDS = [0, 2, 4, 6, 1, 3, 5, 7]  # the output in each nibble of a word, from the lowest


def read_safetensors(path):
    with open(path, "rb") as file:
        length, = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])]) for name, entry in header.items()}


def write_safetensors(path, tensors):
    header, data = {}, []
    at = 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
        data.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data))


def bf16_floats(raw):
    words = array.array("H", raw)
    return array.array("f", array.array("I", [word << 16 for word in words]).tobytes())


def f16(value):
    return struct.unpack("<e", struct.pack("<e", value))[0]


def quantize(weights, n_out, n_in, groups_of):
    """Codes [out][in], zeros and scales [group][out]; min and max of each group are met."""
    groups = max(groups_of) + 1
    inputs = [[k for k in range(n_in) if groups_of[k] == g] for g in range(groups)]
    codes = [[0] * n_in for _ in range(n_out)]
    zeros = [[0] * n_out for _ in range(groups)]
    scales = [[0.0] * n_out for _ in range(groups)]
    for n in range(n_out):
        row = weights[n * n_in:(n + 1) * n_in]
        for g, members in enumerate(inputs):
            low = min(0.0, min(row[k] for k in members))
            high = max(0.0, max(row[k] for k in members))
            scale = f16(max((high - low) / 15, 1e-6))
            zero = min(15, max(0, round(-low / scale)))
            zeros[g][n], scales[g][n] = zero, scale
            line = codes[n]
            for k in members:
                line[k] = min(15, max(0, round(row[k] / scale) + zero))
    return codes, zeros, scales


def words(rows):
    """Nibbles in eights, the lowest first, as the bytes of i32."""
    out = array.array("I")
    for row in rows:
        for i in range(0, len(row), 8):
            word = 0
            for j in range(8):
                word |= row[i + j] << (4 * j)
            out.append(word)
    return out.tobytes()


def gptq_tensors(stem, n_out, n_in, codes, zeros, scales, groups_of, less):
    columns = array.array("I")
    for k in range(0, n_in, 8):
        for n in range(n_out):
            line, word = codes[n], 0
            for j in range(8):
                word |= line[k + j] << (4 * j)
            columns.append(word)
    groups = len(zeros)
    return {
        stem + "qweight": ("I32", [n_in // 8, n_out], columns.tobytes()),
        stem + "qzeros": ("I32", [groups, n_out // 8], words([[(z - less) & 15 for z in row] for row in zeros])),
        stem + "scales": ("F16", [groups, n_out], b"".join(struct.pack("<%de" % n_out, *row) for row in scales)),
        stem + "g_idx": ("I32", [n_in], struct.pack("<%di" % n_in, *groups_of)),
    }


def awq_tensors(stem, n_out, n_in, codes, zeros, scales):
    def turned(row):
        return [row[i + held] for i in range(0, len(row), 8) for held in AWQ_HOLDS]
    groups = len(zeros)
    return {
        stem + "qweight": ("I32", [n_in, n_out // 8], words([turned([codes[n][k] for n in range(n_out)]) for k in range(n_in)])),
        stem + "qzeros": ("I32", [groups, n_out // 8], words([turned(row) for row in zeros])),
        stem + "scales": ("F16", [groups, n_out], b"".join(struct.pack("<%de" % n_out, *row) for row in scales)),
    }




def make(model, folder, act_order_seed=1):
    """Folders gptq, gptq_act_order and awq under `folder`, of the model at `model`."""
    tensors = read_safetensors(os.path.join(model, "model.safetensors"))
    with open(os.path.join(model, "config.json")) as file:
        config = json.load(file)
    made = {"gptq": {}, "gptq_act_order": {}, "awq": {}}
    for name, (dtype, shape, raw) in tensors.items():
        if not name.endswith("_proj.weight"):
            for kind in made.values():
                kind[name] = (dtype, shape, raw)
            continue
        stem, (n_out, n_in) = name[:-len("weight")], shape
        weights = bf16_floats(raw)
        groups_of = [k // GROUP for k in range(n_in)]
        result = quantize(weights, n_out, n_in, groups_of)
        made["gptq"].update(gptq_tensors(stem, n_out, n_in, *result, groups_of, less=1))
        made["awq"].update(awq_tensors(stem, n_out, n_in, *result))
        random.Random(act_order_seed).shuffle(groups_of)
        made["gptq_act_order"].update(gptq_tensors(stem, n_out, n_in, *quantize(weights, n_out, n_in, groups_of), groups_of, less=0))
    quantization = {
        "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False},
        "gptq_act_order": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True, "sym": False,
                           "checkpoint_format": "gptq_v2"},
        "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    }
    paths = {}
    for kind, content in made.items():
        paths[kind] = path = os.path.join(folder, kind)
        os.makedirs(path)
        for file in os.listdir(model):
            if file.endswith(".json"):
                shutil.copyfile(os.path.join(model, file), os.path.join(path, file))
        with open(os.path.join(path, "config.json"), "w") as file:
            json.dump({**config, "quantization_config": quantization[kind]}, file)
        write_safetensors(os.path.join(path, "model.safetensors"), content)
    return paths
