"""Models by the memory of a board."""

from __future__ import annotations

from qwen_edge.bench.boards import BOARDS, Board, markdown_table, recommended
from qwen_edge.memory_fit import ROOMY_N_CTX, budget_of
from qwen_edge.memory_kernels import PLAIN


def test_more_memory_is_never_a_smaller_model_and_all_stay_in_memory() -> None:
    for kernels in {board.kernels for board in BOARDS}:
        alike = sorted(
            (board for board in BOARDS if board.kernels == kernels), key=lambda board: board.left_bytes
        )
        sizes = []
        for board in alike:
            found = recommended(board)
            sizes.append(0 if found is None else found[0].n_weights)
            if found is not None:
                assert found[1].resident_bytes <= budget_of(board.left_bytes)
                assert found[1].config.n_ctx >= ROOMY_N_CTX
        assert sizes == sorted(sizes)


def test_the_table_has_a_line_for_each_and_says_where_nothing_fits() -> None:
    tiny = Board(name="a toaster", memory_bytes=100 << 20, system_bytes=50 << 20, kernels=PLAIN)
    assert recommended(tiny) is None
    lines = markdown_table((*BOARDS, tiny)).splitlines()
    assert len(lines) == len(BOARDS) + 3
    assert lines[-1] == "| a toaster | 0.05 GB | none stays in memory | - | - | - |"
