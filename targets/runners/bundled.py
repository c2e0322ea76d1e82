"""What every runner program does with a bundle, and how it is called. Python >= 3.9 with numpy, nothing of edgekit."""

import argparse
import hashlib
import json
import os

import machine
import measure


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def check_vectors(folder, infer):
    """Runs the test vectors through `infer`, from inputs by name and the names of outputs to these. Returns the worst
    error as a share of the tolerance, and the SHA-256 of all outputs.
    """
    import numpy as np

    worst, digest = 0.0, hashlib.sha256()
    with np.load(os.path.join(folder, "vectors.npz"), allow_pickle=False) as vectors:
        names = [name[len("tolerance/") :] for name in vectors.files if name.startswith("tolerance/")]
        count = int(vectors["count"])
        for index in range(count):
            prefix = "input/%d/" % index
            inputs = {name[len(prefix) :]: vectors[name] for name in vectors.files if name.startswith(prefix)}
            found = infer(inputs, names)
            for name in names:
                actual, expected = found[name], vectors["output/%d/%s" % (index, name)]
                digest.update(np.ascontiguousarray(actual).tobytes())
                error = float("inf")
                if actual.shape == expected.shape:  # as floats: booleans have no difference, that of unsigned wraps
                    difference = actual.astype(np.float64) - expected.astype(np.float64)
                    error = float(np.max(np.abs(difference), initial=0.0))
                allowed = float(vectors["tolerance/" + name])
                worst = max(worst, error / allowed if error == error else float("inf"))
    return {"count": count, "worst_error_share": worst, "ok": worst <= 1.0, "outputs_sha256": digest.hexdigest()}


def run(folder, seconds, open_model, race, facts):
    """Checks the bundle in `folder`, then races its model. `open_model` takes the folder and what the manifest says of
    the artifact, and gives the model as `race` takes it and a function as `check_vectors` does.
    """
    with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    for name, entry in manifest["files"].items():
        if not os.path.isfile(os.path.join(folder, name)) or sha256(os.path.join(folder, name)) != entry["sha256"]:
            return {"ok": False, "error": "%s is missing or not what the manifest says" % name}
    threads = manifest["artifact"]["threads"]
    with machine.pinned(threads):
        try:
            model, infer = open_model(folder, manifest["artifact"])
        except ValueError as error:
            return {"ok": False, "error": str(error)}
        vectors = check_vectors(folder, infer)
        del infer  # the race loads the model for itself
    document = {"ok": vectors["ok"], "vectors": vectors, "device": facts()}
    if vectors["ok"] and seconds > 0:
        document.update(race({"models": [model], "threads": threads, "seconds": seconds}))
    return document


def race(job, contestant, peak_memory, runtime_name):
    """See `measure.race`. With "footprint" in the job, the energy and peak memory of each model too."""
    threads, inputs, seed = job["threads"], job.get("inputs"), job.get("seed", 0)
    footprint = job.get("footprint", False)
    with machine.pinned(threads) as cores:
        memory = [peak_memory(model, threads, inputs, seed) for model in job["models"] if footprint]
        contestants = [contestant(model, threads, inputs, seed) for model in job["models"]]
        found = measure.race(contestants, job["seconds"], cores, job.get("min_rounds", 10), footprint)
    for row, (size, reason) in zip(found["results"], memory):
        row["memory"] = size
        if size is None:
            found["conditions"]["missing"]["memory"] = reason
    for key in ("before", "after"):
        found[key]["runtime"] = runtime_name()
    return dict(found, threads=threads)


def called(about, actions):
    """What the command line asks for, as (document, exit code): inside a bundle its check and its latency, elsewhere a
    job, which `about` describes and one of `actions` does.
    """
    folder = os.path.dirname(os.path.abspath(__file__))
    if os.path.isfile(os.path.join(folder, "manifest.json")):
        parser = argparse.ArgumentParser(description="Check this bundle's test vectors, then measure its latency.")
        parser.add_argument("--seconds", type=float, default=3.0, help="time to measure; 0 checks the vectors only")
        document = actions["bundle"]({"folder": folder, "seconds": parser.parse_args().seconds})
        return document, 0 if document["ok"] else 7
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", help="JSON file with an 'action': %s" % ", ".join(actions))
    with open(parser.parse_args().job, encoding="utf-8") as file:
        job = json.load(file)
    machine.end_with_parent()
    return actions[job["action"]](job), 0
