"""Small models of the literature, their losses, and layers that are fast on a CPU."""

from fedjax_edge.models.char_gru import char_gru
from fedjax_edge.models.convolution import conv_general_dilated, max_pool
from fedjax_edge.models.dot_general import dot_general
from fedjax_edge.models.logistic_regression import logistic_regression
from fedjax_edge.models.losses import classification, next_character, scale_pixels
from fedjax_edge.models.mnist_2nn import mnist_2nn
from fedjax_edge.models.mnist_cnn import mnist_cnn
from fedjax_edge.models.model import Model, from_linen, from_nnx
from fedjax_edge.models.small_cnn import small_cnn

__all__ = [
    "Model",
    "char_gru",
    "classification",
    "conv_general_dilated",
    "dot_general",
    "from_linen",
    "from_nnx",
    "logistic_regression",
    "max_pool",
    "mnist_2nn",
    "mnist_cnn",
    "next_character",
    "scale_pixels",
    "small_cnn",
]
