import pytest

from detectron2.config import CfgNode, configurable

CFG = CfgNode({"WIDTH": 8, "DEPTH": 2})


class Net:
    @configurable
    def __init__(self, width, *, depth=1, name=""):
        self.values = (width, depth, name)

    @classmethod
    def from_config(cls, cfg, extra=0):
        return {"width": cfg.WIDTH + extra, "depth": cfg.DEPTH}


class DeepNet(Net):
    @classmethod
    def from_config(cls, cfg, **kwargs):
        return {**super().from_config(cfg), "depth": 50, **kwargs}


class OwnInit(Net):
    @configurable
    def __init__(self, more, **kwargs):
        super().__init__(**kwargs)
        self.more = more

    @classmethod
    def from_config(cls, cfg):
        return {"more": 1, **super().from_config(cfg)}


@configurable(from_config=lambda cfg, extra=0: {"width": cfg.WIDTH + extra})
def build(width, scale=1):
    """Doc."""
    return width * scale


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: Net(3), (3, 1, "")),
        (lambda: Net(width=3, depth=4, name="x"), (3, 4, "x")),
        (lambda: Net(CFG), (8, 2, "")),
        (lambda: Net(cfg=CFG), (8, 2, "")),
        (lambda: Net(CFG, 5), (13, 2, "")),
        (lambda: Net(CFG, extra=5, depth=9, name="x"), (13, 9, "x")),
        (lambda: DeepNet(CFG), (8, 50, "")),
        (lambda: DeepNet(CFG, name="all go to from_config"), (8, 50, "all go to from_config")),
        (lambda: OwnInit(CFG), (8, 2, "")),
        (lambda: OwnInit(CFG, width=1), (1, 2, "")),
    ],
)
def test_class(made, expected):
    assert made().values == expected


def test_function():
    assert build(3) == 3
    assert build(CFG, scale=2) == 16
    assert build(CFG, extra=1, scale=2) == 18
    assert build(cfg=CFG) == 8
    assert build.__doc__ == "Doc."


def test_class_without_from_config():
    class Bare:
        @configurable
        def __init__(self, a):
            self.a = a

    with pytest.raises(AttributeError, match=r"Bare .*from_config"):
        Bare(1)


def test_from_config_must_be_a_classmethod():
    class Wrong:
        @configurable
        def __init__(self, a):
            self.a = a

        def from_config(self, cfg):
            return {"a": 1}

    with pytest.raises(TypeError, match="classmethod"):
        Wrong(CFG)


def test_from_config_must_take_cfg_first():
    @configurable(from_config=lambda settings: {"a": 1})
    def function(a):
        return a

    with pytest.raises(TypeError, match="cfg"):
        function(CFG)


@pytest.mark.parametrize(
    "decorate",
    [
        lambda: configurable(),
        lambda: configurable(build),
        lambda: configurable(Net),
        lambda: configurable(Net.__init__, from_config=lambda cfg: {}),
    ],
)
def test_misuse_of_the_decorator(decorate):
    with pytest.raises(TypeError):
        decorate()
