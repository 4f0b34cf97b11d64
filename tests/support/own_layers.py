"""Classes of a user's own, for models that only Keras can run; imported with TensorFlow's or PyTorch's Keras."""

from __future__ import annotations

import keras


class Gate(keras.layers.Layer):
    """Every channel scaled by a sigmoid of a weight."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="random_normal", name="scale")

    def call(self, x):
        return x * keras.ops.sigmoid(self.scale)


class Net(keras.Model):
    """A model without a graph of layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = keras.layers.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="first")
        self.block = keras.Sequential(
            [keras.layers.Conv2D(8, 3, padding="same", name="conv"), keras.layers.ReLU(name="act")], name="block"
        )
        self.gate = Gate(name="gate")
        self.pool = keras.layers.GlobalAveragePooling2D(name="pool")
        self.head = keras.layers.Dense(4, activation="softmax", name="head")

    def call(self, x):
        return self.head(self.pool(self.gate(self.block(self.first(x)))))
