"""Data that come with the package.

- `mnist_sample.npz`: 10,000 training and 2,000 test images of MNIST (LeCun, Cortes and Burges; CC BY-SA 3.0), made by
  `make_mnist_sample.py`.
- `shakespeare.txt.gz`: 40,000 lines of Shakespeare's plays (public domain), from `data/tinyshakespeare/input.txt` of
  <https://github.com/karpathy/char-rnn>.
"""
