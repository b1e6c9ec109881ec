"""The engine's registers by name, per version of the task descriptors.

    name_of(7, 0x1F808)  ->  ("KernelDMA", "CoeffDMAConfig[0]", (Field("En", 0, 0), ...))

The tables read: block, base address, number of registers; below it the registers by their place in the block, how
many of a kind, and their bit fields (first-last bit). Registers that no public source names have no row.
Sources: FTN, GDE, M6S; version 7 verified on the shared files as far as docs/formats.md says. Src2's registers of
H16 follow Src1's in the same order (FTN: "likewise"); where they begin agrees with GDE's and M6S's addresses.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

_COEFFICIENTS = "En 0, CrH 4-5, CacheHint 6-9, PrefetchParticipate 27"

_HEADER_7 = """
0 Task              TID 0-15, NID 16-23, LNID 24, EON 25
1 Time              ExeCycles 0-15, NextSize 16-24
2 LogEvents         Events 0-23
3 Exceptions        Exceptions 0-23
4 DebugLogEvents    Events 0-23
5 DebugExceptions   Exceptions 0-23
6 Flags             DisallowAbort 8, TDSkip 9, KPC 10, SPL 11, TSR 12, SPC 13, DPC 14, TSE 15, NextPriority 16-21, \
TDE 24, SrcLoc 28, DstLoc 29, TQDis 31
7 Next              Offset 0-31
8 Bases             RBase0 0-4, RBE0 5, RBase1 6-10, RBE1 11, WBase 12-16, WBE 17, TBase 18-22, TBE 23, ENE 24-27
9 KernelBases       KBase0 0-4, KBE0 5, KBase1 6-10, KBE1 11, KBase2 12-16, KBE2 17, KBase3 18-22, KBE3 23
"""

_HEADER_STREAM = """
0 Task              TID 0-15, Size 16-26
1 Time              ExeCycles 0-15
2 LogEvents         Events 0-23
3 Exceptions        Exceptions 0-23
4 DebugLogEvents    Events 0-23
5 DebugExceptions   Exceptions 0-23
6 LiveOuts          LiveOuts 0-31
"""
_CONTROL = "Control TSR 0, TDE 1, ENE 16-18"

_V7 = f"""
KernelDMA 0x1F800 62
  0x08*16 CoeffDMAConfig {_COEFFICIENTS}
  0x48*16 CoeffBaseAddr Addr 6-31
  0x88*16 CoeffBfrSize Size 6-31
Common 0x0000 16
  0x00 InDim Win 0-14, Hin 16-30
  0x08 ChCfg InFmt 0-1, OutFmt 4-5
  0x0C Cin Cin 0-16
  0x10 Cout Cout 0-16
  0x14 OutDim Wout 0-14, Hout 16-30
  0x1C ConvCfg Kw 0-4, Kh 5-9, OCGSize 10-12, Sx 13-14, Sy 15-16, Px 17-21, Py 22-26, Ox 28-29, Oy 30-31
  0x24 GroupConvCfg NumGroups 0-12, UnicastEn 14, ElemMultMode 15, UnicastCin 16-31
  0x28 TileCfg TileHeight 0-15
  0x34 Cfg SmallSourceMode 2, ShPref 8-10, ShMin 12-14, ShMax 16-18, ActiveNE 19-21, ContextSwitchIn 22, \
ContextSwitchOut 24, AccDoubleBuf 26
  0x38 TaskInfo TaskID 0-15, TaskQ 16-19, NID 20-27
  0x3C DPE Category 0-3
TileDMASrc 0x13800 28
  0x00 DMAConfig En 0, CacheHint 4-7, Reuse 8-11, NoReuse 12-15, DependencyMode 16-19
  0x08 BaseAddr Addr 6-31
  0x0C RowStride Stride 6-31
  0x10 PlaneStride Stride 6-31
  0x14 DepthStride Stride 6-31
  0x18 GroupStride Stride 6-31
  0x38 Fmt FmtMode 0-1, Truncate 4-5, Shift 8, MemFmt 12-13, OffsetCh 16-18, Interleave 24-27, CmpVec 28-31
  0x50*4 PixelOffset Offset 0-31
L2 0x4800 18
  0x00 L2Cfg InputReLU 0, PaddingMode 1-2
  0x04 SourceCfg Type 0-1, Dependent 2-3, AliasConvSrc 4, AliasConvRslt 5, DMAFmt 6-7, Interleave 8-11, CmpVec 12-15, \
OffsetCh 16-18, AliasPlanarSrc 20, AliasPlanarRslt 22
  0x08 SourceBase Addr 4-20
  0x0C SourceChannelStride Stride 4-20
  0x10 SourceRowStride Stride 4-20
  0x30 ResultCfg
  0x34 ResultBase
  0x38 ResultChannelStride
  0x3C ResultRowStride
PE 0x8800 4
  0x00 Cfg En 1, OpMode 2-4, Relu 5, Cond 6, Src1 16, Src2 18-19
  0x04 BiasScale Bias 0-15, Scale 16-31
  0x08 PreScale
  0x0C FinalScale
NE 0xC800 5
  0x00 KernelCfg Fmt 0-1, Palettized 2, PalBits 4-7, Sparse 8, GroupReuse 10
  0x04 MACCfg OpMode 0-2, KernelMode 3, BiasMode 5, MatrixBias 7, BinaryPoint 9-12, PostScale 14, Nonlinear 16-17
  0x08 MatrixVectorBias
  0x0C AccBias Value 0-15, Shift 16-20
  0x10 PostScale Value 0-15, Shift 16-20
TileDMADst 0x17800 7
  0x00 DMAConfig En 0, CacheHint 4-7, L2BfrMode 24, BypassEOW 25
  0x04 BaseAddr Addr 6-31
  0x08 RowStride Stride 6-31
  0x0C PlaneStride Stride 6-31
  0x10 DepthStride Stride 6-31
  0x14 GroupStride Stride 6-31
  0x18 Fmt FmtMode 0-1, Truncate 4-5, Shift 8, MemFmt 12-13, OffsetCh 16-18, Interleave 24-27, CmpVec 28-31
"""

_COMMON_H14 = """
Common 0x0000 19
  0x00 InDim W 0-14, H 16-30
  0x04 InDepth
  0x08 ChannelCfg
  0x0C Cin Cin 0-16
  0x10 Cout Cout 0-16
  0x14 OutDim W 0-14, H 16-30
  0x18 OutDepth
  0x1C OCGSize
  0x20 ConvCfg
  0x24 ConvCfg3d
  0x28 GroupConvCfg TaskType 0-3
  0x2C TileCfg
  0x30 TileOverlap
  0x34 NECfg
  0x38 Cfg
  0x3C TaskInfo
  0x40 DPE
"""
_KERNEL_H14 = f"""
  0x18*16 CoeffDMAConfig {_COEFFICIENTS}
  0x58*16 CoeffBaseAddr Addr 6-31
  0x98*16 CoeffBfrSize Size 6-31
  0xD8 BiasConfig
  0xE8 PostScaleConfig
"""

_COMMON_H16 = """
Common 0x0000 23
  0x00 ChannelCfg InFmt 0-1, Src2Fmt 2-3, OutFmt 4-5
  0x04 Win Win 0-16
  0x08 Hin Hin 0-16
  0x0C Cin Cin 0-16
  0x10 Din Din 0-16
  0x14 Wout Wout 0-16
  0x18 Hout Hout 0-16
  0x1C Cout Cout 0-16
  0x20 Dout Dout 0-16
  0x24 NumGroups NumGroups 0-31
  0x28 ConvCfg Kw 0-5, Kh 6-11, Sx 13-14, Sy 15-16, PadLeft 17-21, PadTop 22-26, Ox 28-29, Oy 30-31
  0x2C ConvCfg3d Kd 0-4, Sz 6-7, Pz 8-11, Oz 13-14
  0x30 Unicast En 14, Cin 16-31
  0x34 TileHeight
  0x38 TileOverlap
  0x3C MacCfg TaskType 4-7, ActiveNE 19-21, Relu 24-27
  0x40 NECfg OCGSize 0-2, FatTile 3, WUStackLog2 4-5
  0x44 PatchCfg W 0-3, H 4-8
  0x48 PECfg Src1Bcast 0-3, Src2Bcast 4-7, Src1Transpose 8, Src2Transpose 9, OutTranspose 10
  0x4C NID
  0x50 DPE
"""
_PE_H16 = """
  0x00 Cfg Pool 0-1, Op 2-4, LUT 5, Cond 6-9, Nonlinear 12-13, Src1 16, Src2 18-19
  0x04 Bias Value 0-18
  0x08 Scale Value 0-18
  0x0C Epsilon Value 0-18
  0x10 PreScale Value 0-18
  0x14 FinalScale Value 0-18
  0x18*8 LUT
  0x38 Quant
"""
_NE_H16 = """
  0x00 KernelCfg Fmt 0-1, Pal 2, PalBits 4-7, Sparse 8, Reuse 10, SparseBinary 15, Align 16, BlockSize 21-23, \
AsymQuant 24
  0x04 MacCfg OpMode 0-2, KernelMode 3, Bias 4, Passthrough 5, MatrixVectorBias 6, BinaryPoint 8-13, PostScale 14, \
Nonlinear 16-17, MaxPool 19, ArgSel 20-23, DoubleInt8 26
  0x08 MatrixVectorBias
  0x0C Bias Value 0-15, Exp 16-20
  0x10 PostScale Value 0-15, Exp 16-20
  0x14 Rcas
  0x18 RoundMode Mode 0-1, IntBits 4-8
  0x1C*4 StochasticRoundingSeed
  0x2C ZeroPoint
"""
_L2_H16 = """
  0x10 Src1Base Addr 4-20
  0x14 Src1ChannelStride Stride 4-20
  0x18 Src1RowStride Stride 4-20
  0x1C Src1DepthStride Stride 4-20
  0x20 Src1GroupStride Stride 4-20
  0x24 Src2Base Addr 4-20
  0x28 Src2ChannelStride Stride 4-20
  0x2C Src2RowStride Stride 4-20
  0x30 Src2DepthStride Stride 4-20
  0x34 Src2GroupStride Stride 4-20
  0x38 Index
  0x48 ResultCfg
  0x4C ResultBase Addr 4-20
  0x50 ResultChannelStride Stride 4-20
  0x54 ResultRowStride Stride 4-20
  0x58 ResultDepthStride Stride 4-20
  0x5C ResultGroupStride Stride 4-20
"""
_SRC_H16 = """
  0x00*2 DMAConfig En 0, CacheHint 5-7, DataSetId 8-15, UserTag 16-23, DepInterval 24-27, DepMode 28-29
  0x10 Src1BaseLow
  0x14 Src1BaseHigh
  0x18 Src1RowStride
  0x1C Src1ChannelStride
  0x20 Src1DepthStride
  0x24 Src1GroupStride
  0x28 Src2BaseLow
  0x2C Src2BaseHigh
  0x30 Src2RowStride
  0x34 Src2ChannelStride
  0x38 Src2DepthStride
  0x3C Src2GroupStride
  0x68*2 Format
"""
_DST_H16 = """
  0x08 BaseLow
  0x0C BaseHigh
  0x10 RowStride
  0x14 PlaneStride
  0x18 DepthStride
  0x1C GroupStride
  0x38 Format
"""
_KERNEL_H16 = f"""
  0x00 Master GroupReuse 4, SparseFmt 5, Enable 6
  0x04 CoeffSizePerChannel
  0x08 Prefetch
  0x18 GroupStride
  0x1C OCGStride
  0x20*16 CoeffDMAConfig {_COEFFICIENTS}
  0x60*16 CoeffBaseAddr Addr 6-31
  0xA0*16 CoeffBfrSize Size 6-31
  0xE0 BiasConfig
  0xE4 BiasBase
  0xF0 PostScaleConfig
  0x100 PaletteConfig
  0x110 LUTConfig
"""

#: M6: the registers that its address packets write, M6S; nothing else is named.
_V24 = """
TileDMASrc 0x4D18 7
  0x00 Src1Base
  0x18 Src2Base
TileDMADst 0x5110 1
  0x00 Base
KernelDMA 0x5510 1
  0x00 KernelBase
"""


def _later(l2: int, pe: int, ne: int, src: int, dst: int, kernel: int, *, names: str) -> str:
    """The blocks of H15 and later: bases are common, counts and what is known of the registers are not."""
    tables = {"L2": _L2_H16, "PE": _PE_H16, "NE": _NE_H16, "TileDMASrc": _SRC_H16, "TileDMADst": _DST_H16,
              "KernelDMA": _KERNEL_H16}  # fmt: skip
    blocks = (("L2", 0x4100, l2), ("PE", 0x4500, pe), ("NE", 0x4900, ne), ("TileDMASrc", 0x4D00, src),
              ("TileDMADst", 0x5100, dst), ("KernelDMA", 0x5500, kernel))  # fmt: skip
    return "".join(
        f"\n{name} {base:#x} {count}{tables[name] if name in names.split() else ''}" for name, base, count in blocks
    )


_TABLES = {
    7: _V7,
    11: f"{_COMMON_H14}L2 0x0500 25\nPE 0x0900 5\nNE 0x0D00 5\nTileDMASrc 0x1100 53\nTileDMADst 0x1500 9\n"
        f"KernelDMA 0x1900 70{_KERNEL_H14}",
    8: f"{_COMMON_H14}L2 0x4100 25\nPE 0x4500 15\nNE 0x4900 5\nTileDMASrc 0x4D00 53\nTileDMADst 0x5100 9\n"
       f"KernelDMA 0x5500 70{_KERNEL_H14}CacheDMA 0x5900 12",
    17: _COMMON_H16 + _later(41, 15, 12, 81, 21, 72, names="L2 PE NE TileDMASrc TileDMADst KernelDMA")
        + "\nCacheDMA 0x5900 12",
    19: _COMMON_H16 + _later(42, 16, 13, 83, 23, 74, names="PE NE") + "\nCacheDMA 0x5900 14",
    20: _COMMON_H16 + _later(43, 16, 13, 81, 27, 83, names="L2 PE NE") + "\nCacheDMA 0x5900 14",
    24: _V24,
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """Bits `low` to `high` of a register, both included."""

    name: str
    low: int
    high: int

    def of(self, value: int) -> int:
        return value >> self.low & (1 << (self.high - self.low + 1)) - 1


@dataclass(frozen=True)
class Register:
    block: str
    name: str
    fields: tuple[Field, ...]


def name_of(version: int | None, address: int) -> tuple[str, str, tuple[Field, ...]]:
    """Block, name and fields of a register; `?` where no source names it."""
    registers, blocks = _table(version)
    found = registers.get(address)
    if found is not None:
        return found.block, found.name, found.fields
    for name, base, count in blocks:
        if base <= address < base + 4 * count:
            return name, f"?+{address - base:#04x}", ()
    return "?", f"?{address:#07x}", ()


def header_of(version: int, length: int) -> tuple[tuple[str, tuple[Field, ...]], ...]:
    """Name and fields of each of a header's `length` words."""
    rows = dict(_header_rows(_HEADER_7 if version <= 7 else _HEADER_STREAM))
    if version > 7:
        rows[7 if length <= 8 else 8] = _named(_CONTROL)
    return tuple(rows.get(index, (f"?{index}", ())) for index in range(length))


def _header_rows(table: str) -> Iterator[tuple[int, tuple[str, tuple[Field, ...]]]]:
    for line in table.strip().splitlines():
        index, rest = line.split(maxsplit=1)
        yield int(index), _named(rest)


def _named(row: str) -> tuple[str, tuple[Field, ...]]:
    name, _, fields = row.partition(" ")
    return name, tuple(
        Field(match[1], int(match[2]), int(match[3] or match[2]))
        for match in re.finditer(r"(\w+) (\d+)(?:-(\d+))?", fields)
    )


@cache
def _table(version: int | None) -> tuple[dict[int, Register], tuple[tuple[str, int, int], ...]]:
    registers: dict[int, Register] = {}
    blocks: list[tuple[str, int, int]] = []
    for line in _TABLES.get(version or 0, "").splitlines():
        if not line.strip():
            continue
        if not line.startswith(" "):
            block, base, count = line.split()
            blocks.append((block, int(base, 0), int(count)))
            continue
        place, rest = line.split(maxsplit=1)
        start, _, times = place.partition("*")
        name, fields = _named(rest)
        for index in range(int(times or 1)):
            shown = f"{name}[{index}]" if times else name
            registers[blocks[-1][1] + int(start, 0) + 4 * index] = Register(blocks[-1][0], shown, fields)
    return registers, tuple(blocks)
