"""MNIST: its official files, and the published slice that ships with the package."""

from __future__ import annotations

from leaveout.data.official import BUNDLED, Official

MNIST = Official(
    name="mnist",
    title="MNIST",
    sha256={
        "train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    },
    folder="LEAVEOUT_MNIST_IDX_DIR",
    default_folder=None,
    others="source: hub or idx",
    slice_path=BUNDLED / "mnist-5000-500.xz",
    slice_sha256="97c7a938fcac02012b70bc334a17b8bd39d60c88bd292a48a2eaaac7f28ebead",
    slice_train=5000,
    slice_test=500,
)
