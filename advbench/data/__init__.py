"""Registered data sets with fixed splits and a content digest; out-of-distribution images."""

from advbench.data.base import Data as Data
from advbench.data.base import check_images as check_images
from advbench.data.base import check_labels as check_labels
from advbench.data.datasets import Dataset as Dataset
from advbench.data.datasets import limited as limited
from advbench.data.datasets import load_dataset as load_dataset
from advbench.data.datasets import make_dataset as make_dataset
