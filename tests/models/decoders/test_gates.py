"""The gates of the LSTMs against torch's own cell, and which of them is open at first."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captioning.kernels.backend import Backend, use_backend
from captioning.kernels.ops import Rows
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.lstm import LSTM

HIDDEN, EMBED, CHANNELS, ROWS = 6, 64, 5, 3


def decoder(kind: type[LSTM], **settings: Any) -> LSTM:
    torch.manual_seed(0)
    return kind(9, CHANNELS, hidden_dim=HIDDEN, embed_dim=EMBED, **settings).eval()


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_step_is_that_of_torchs_lstm_cell(backend: Backend) -> None:
    model, cell = decoder(LSTM), nn.LSTMCell(EMBED, HIDDEN)
    with torch.no_grad():
        cell.weight_ih.copy_(model.input_gates.weight)
        cell.bias_ih.copy_(model.input_gates.bias)
        cell.weight_hh.copy_(model.hidden_gates.weight)
        cell.bias_hh.zero_()
    word, hidden, state = (
        torch.randn(ROWS, EMBED),
        torch.randn(ROWS, HIDDEN),
        torch.randn(ROWS, HIDDEN),
    )
    with torch.no_grad(), use_backend(backend):
        found = model.recurrent_step(
            model.word_inputs(word), {"hidden": hidden, "cell": state}, {},
            Rows.all(ROWS, 1, torch.device("cpu")),
        )  # fmt: skip
    expected_hidden, expected_cell = cell(word, (hidden, state))
    torch.testing.assert_close(found["hidden"], expected_hidden.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["cell"], expected_cell.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [LSTM, AttentionLSTM])
def test_the_forget_gate_alone_is_open_at_first(kind: type[LSTM]) -> None:
    """By what torch's cell makes of the bias: the cell keeps sigmoid(1) of itself, not half."""
    model = decoder(kind)
    bias = model.input_gates.bias.detach()
    cell = nn.LSTMCell(EMBED, HIDDEN, bias=True)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.bias_ih.copy_(bias)

        def after(state: Tensor) -> Tensor:
            return cell(torch.zeros(1, EMBED), (torch.zeros(1, HIDDEN), state))[1]

        kept = (after(torch.ones(1, HIDDEN)) - after(torch.zeros(1, HIDDEN))).squeeze(0)
    spread = EMBED**-0.5  # torch's initial values of a linear layer are within this
    low, high = torch.tensor([1 - spread, 1 + spread]).sigmoid()
    assert ((low <= kept) & (kept <= high)).all()
    others = torch.cat([bias[:HIDDEN], bias[2 * HIDDEN :]])
    assert others.abs().max() <= spread
    plain = [model.initial_hidden, model.initial_cell, model.output_hidden]
    assert all(layer.bias.abs().max() <= layer.in_features**-0.5 for layer in plain)
