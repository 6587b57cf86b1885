"""Fashion-MNIST: its official files, and a slice of two of its classes.

Labels: 0 T-shirt/top, 1 trouser, 2 pullover, 3 dress, 4 coat, 5 sandal, 6 shirt, 7 sneaker, 8 bag,
9 ankle boot. Pullovers and coats, which the slice holds, are about as hard to tell apart as cats
and dogs in CIFAR-10, and may be passed on. There is no ``hub`` source: nobody has pinned and
verified a revision of it.
"""

from __future__ import annotations

from pathlib import Path

from leaveout.data.official import BUNDLED, Official

FASHION_MNIST = Official(
    name="fashion_mnist",
    title="Fashion-MNIST",
    sha256={
        "train-images-idx3-ubyte": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    },
    folder="LEAVEOUT_FASHION_MNIST_IDX_DIR",
    default_folder=Path("/usr/share/datasets/fashion-mnist"),  # Debian: dataset-fashion-mnist
    others="source: idx",
    slice_path=BUNDLED / "fashion-mnist-2-4-5000-500.xz",
    slice_sha256="0337b8324116cb8a997f8323b4200da575a9d2f2494ec5a394fe594a89659b90",
    slice_train=5000,
    slice_test=500,
    slice_classes=(2, 4),
)
