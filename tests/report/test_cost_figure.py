"""The picture of networks' costs: which networks it shows, and that its names can be read."""

import itertools

from graftline.backbones.cost import Cost, LayerCost, NetworkCost, NetworkTiming, Timing
from graftline.report.cost_figure import cost_figure

NAMES = [f"net{number}" for number in range(8)]


def cost_of(name: str, macs: int, milliseconds: float | None, parameters: int = 10_000_000) -> NetworkCost:
    layer = LayerCost("conv", "stem", "conv", parameters, macs, 100)
    timings = () if milliseconds is None else (Timing("onnx", 1, milliseconds, 3),)
    return NetworkCost(name, Cost(name, (layer,), (224, 224), 3), NetworkTiming(timings))


def test_every_measured_network_is_named_and_no_name_hides_another() -> None:
    networks = [cost_of(name, 10**9 + 10**8 * number, 10 + number) for number, name in enumerate(NAMES)]
    networks += [cost_of("large", 20 * 10**9, 200, 140_000_000), cost_of("unmeasured", 10**9, None)]
    figure = cost_figure(networks, batch_size=1)
    assert figure is not None
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = [text for text in axes.texts if text.get_text().strip().startswith(("net", "large", "un"))]
    assert sorted(text.get_text().strip() for text in labels) == ["large", *NAMES]
    assert axes.texts[-1].get_text() == "not timed: unmeasured"
    boxes = [text.get_window_extent() for text in labels]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_a_network_that_is_far_smaller_is_written() -> None:
    figure = cost_figure(
        [cost_of("lenet5", 416_520, 0.05, 61_706), cost_of("a", 10**9, 10), cost_of("b", 10**10, 80)], 1
    )
    assert figure is not None
    (axes,) = figure.axes
    assert any(text.get_text() == "←  lenet5: 417 k multiply-adds, 0.05 ms, 61,706 parameters" for text in axes.texts)
    assert axes.get_xlim()[0] > 0.1


def test_one_network_is_no_picture() -> None:
    assert cost_figure([cost_of("a", 10**9, 10), cost_of("b", 10**9, None)], batch_size=1) is None
