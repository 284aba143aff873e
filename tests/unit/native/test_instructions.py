"""What a disassembly of ARM kernels tells, on lines as objdump prints them."""

from __future__ import annotations

from qwen_edge.native.cpu_modules import ARM_MODULES
from tests.arm64.instructions import SHOWN, count, mistakes, table

LINES = """\
0000000000001a20 <ggml_gemv_q4_0_4x4_q8_0>:
    1a20:	sdot	v1.4s, v2.16b, v3.4b[0]
    1a24:	udot	v1.4s, v2.16b, v3.16b
    1a28:	fmla	v0.4s, v1.4s, v2.4s
    1a2c:	fmla	v0.8h, v1.8h, v2.8h
    1a30:	smmla	v4.4s, v5.16b, v6.16b
    1a34:	smmla	z4.s, z5.b, z6.b
    1a38:	ptrue	p0.b
    1a3c:	bl	1a20 <sdot v1>
"""
NONE = dict.fromkeys(SHOWN, 0)


def test_vector_registers_tell_neon_from_sve() -> None:
    assert count(LINES) == NONE | {"sdot": 2, "fmla .8h": 1, "smmla": 1, "SVE": 1, "SVE smmla": 1}


def test_a_module_without_its_instructions_is_a_mistake() -> None:
    assert mistakes("armv8.0_1", (), NONE) == []
    assert mistakes("armv8.2_1", ("asimddp",), NONE) == ["armv8.2_1 has no sdot, which it is named for"]
    assert mistakes("armv8.2_1", ("asimddp",), NONE | {"sdot": 9}) == []


def test_a_module_with_what_its_processors_do_not_know_is_a_mistake() -> None:
    assert mistakes("armv8.0_1", (), NONE | {"smmla": 3}) == ["armv8.0_1 has 3 times smmla, which needs i8mm"]
    assert mistakes("armv8.2_1", ("asimddp",), NONE | {"sdot": 9, "SVE": 1})


def test_the_table_has_a_row_for_each_module() -> None:
    lines = table(dict.fromkeys(ARM_MODULES, NONE)).splitlines()
    assert len(lines) == 2 + len(ARM_MODULES)
    assert lines[2] == "| armv8.0_1 | - | 0 | 0 | 0 | 0 | 0 | 0 | 0 |"
