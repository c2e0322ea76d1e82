"""Files that a bundle holds compressed, back as they were: in memory, and checked."""

import hashlib
import os
import zlib

GZIP = 31  # zlib's window bits for a gzip stream


def expanded(folder, artifact, name):
    """The content of `name`, which the bundle in `folder` holds compressed; `None` where it holds it as it is. Raises
    ValueError unless the content is what the manifest's entry `artifact` says.
    """
    entry = artifact.get("expanded", {}).get(name)
    if entry is None:
        return None
    if entry["from"] != os.path.basename(entry["from"]):
        raise ValueError("%s is outside the bundle" % entry["from"])
    with open(os.path.join(folder, entry["from"]), "rb") as file:
        packed = file.read()
    unpacker = zlib.decompressobj(GZIP)
    try:  # whatever it pretends to hold, it takes no more memory
        content = unpacker.decompress(packed, max(entry["size"], 0) + 1)  # 0 would mean without a limit
    except zlib.error as error:
        raise ValueError("%s cannot be expanded: %s" % (entry["from"], error)) from None
    if len(content) != entry["size"] or hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ValueError("%s does not expand to the %s of the manifest" % (entry["from"], name))
    return content
