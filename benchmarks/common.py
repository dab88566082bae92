"""What the benchmarks share: the training they time, and the report they write."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MNIST = ROOT / "results" / "data" / "mnist"


def starting_point(model, folder=MNIST):
    """Return (dataset, settings, parameters) of a tutorial's training in float32."""
    import numpy as np

    from msgd.config import complete_experiment
    from msgd.data.dataset import load_dataset
    from msgd.models import load_model

    dataset = load_dataset(folder)
    settings = complete_experiment({"model": model})
    parameters = load_model(model).initial_parameters(dataset, settings, np.float32)
    return dataset, settings, parameters


def backend_at_start(model, device="cpu", folder=MNIST):
    """Return msgd's backend of ``model`` on ``device`` at the starting point."""
    import numpy as np

    from msgd.models import load_backend

    dataset, settings, parameters = starting_point(model, folder)
    return load_backend(model, device)(dataset, parameters, settings, np.float32)


def write_report(results, path):
    """Print ``results``, with hardware and code, as JSON; write them to ``path``, if not None."""
    from msgd.provenance import describe_code, describe_hardware

    report = {**results, "hardware": describe_hardware(), "code": describe_code()}
    text = json.dumps(report, indent=2)
    print(text)
    if path:
        path.write_text(text + "\n", encoding="utf-8")
