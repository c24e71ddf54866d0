"""GGUF files made by the gguf package alone."""

import gguf


def write(path, tensors=None, values=None, endian=gguf.GGUFEndian.LITTLE):
    """Writes a file with the gguf package; tensors are arrays, or (array, type)."""
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    for key, (value, kind, *items) in (values or {}).items():
        writer.add_key_value(key, value, kind, *items)
    for name, tensor in (tensors or {}).items():
        array, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
