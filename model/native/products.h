// Products of weight matrices with the vectors of a few tokens.
#pragma once

#include "vectors.h"

constexpr int GROUP = 32;  // inputs that share a scale
// Tokens that a weight meets while it is in a register, with one quantised block at a time, and with more.
constexpr int TILE = 8, SMALL_TILE = 4;

enum Kind : int64_t { FP32, BF16, INT8, INT4 };

struct Matrix {  // (out, in); model/quantization.py packs it
    const void *weights;
    const void *scales;
    const float *bias;
    int64_t out, in, kind;
};

static inline int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

static inline bool is_quantised(const Matrix &matrix) { return matrix.kind >= INT8; }

// Vectors (tokens, size), in fp32 and, where a quantised matrix asks for it, in 8 bits with a scale a group.
struct Inputs {
    float *values;
    int64_t tokens, size;
    int8_t *codes;  // (groups, tokens, 32)
    float *scales;  // (groups, tokens)
    int32_t *sums;  // (groups, tokens), of the codes
};

static void quantise(const Inputs &inputs, int64_t token) {
    const float *values = inputs.values + token * inputs.size;
    for (int64_t start = 0; start < inputs.size; start += GROUP) {
        Floats parts[GROUP / LANES] = {};
        memcpy(parts, values + start, (inputs.size - start < GROUP ? inputs.size - start : GROUP) * sizeof(float));
        Floats first = absolute(parts[0]), second = absolute(parts[1]);
        float most = largest(first > second ? first : second);
        int64_t place = start / GROUP * inputs.tokens + token;
        Ints total = {};
        for (int part = 0; part < GROUP / LANES; ++part) {
            Ints rounds = rounded(parts[part] * (most > 0 ? 127 / most : 0));
            Codes codes = __builtin_convertvector(rounds, Codes);
            memcpy(inputs.codes + place * GROUP + part * LANES, &codes, sizeof codes);
            total += rounds;
        }
        inputs.scales[place] = most / 127;
        inputs.sums[place] = sum(total);
    }
}

// Sixteen outputs of TOKENS tokens. A block of weights holds, for every four inputs, four bytes of each output, so
// lanes are outputs and nothing is summed over lanes. Bytes are unsigned, as the instruction wants them, and stand for
// themselves minus an offset: sums begin at minus the offset times what is multiplied.
template <int TOKENS, int BLOCKS, bool FOUR_BITS>
static void quantised_blocks(const Matrix &matrix, int64_t block, const Inputs &inputs, int64_t first, Floats *out) {
    constexpr int OFFSET = FOUR_BITS ? 8 : 128, LOADS = FOUR_BITS ? 4 : 8;
    int64_t groups = blocks_of(matrix.in, GROUP);
    const uint8_t *weights = (const uint8_t *)matrix.weights + block * groups * LOADS * 64;
    Floats totals[BLOCKS][TOKENS] = {};
    for (int64_t group = 0; group < groups; ++group, weights += LOADS * 64) {
        int64_t place = group * inputs.tokens + first;
        const int8_t *codes = inputs.codes + place * GROUP;
        Ints dots[BLOCKS][TOKENS];
        for (int token = 0; token < TOKENS; ++token)
            for (int each = 0; each < BLOCKS; ++each) dots[each][token] = Ints{} - OFFSET * inputs.sums[place + token];
        for (int step = 0; step < LOADS; ++step)
            for (int each = 0; each < BLOCKS; ++each) {
                Bits bits = load<Bits>(weights + (each * groups * LOADS + step) * 64);
                Bytes low = (Bytes)(FOUR_BITS ? bits & 0x0f0f0f0fu : bits), high = (Bytes)(bits >> 4 & 0x0f0f0f0fu);
                for (int token = 0; token < TOKENS; ++token) {
                    Ints &dot = dots[each][token];
                    dot = add_products(dot, low, codes + token * GROUP + 4 * step);
                    if (FOUR_BITS) dot = add_products(dot, high, codes + token * GROUP + 4 * step + 16);
                }
            }
        for (int each = 0; each < BLOCKS; ++each) {
            Floats scale = all(1);
            if (FOUR_BITS) scale = floats((const bf16 *)matrix.scales + ((block + each) * groups + group) * LANES);
            for (int token = 0; token < TOKENS; ++token)
                totals[each][token] +=
                    __builtin_convertvector(dots[each][token], Floats) * (scale * inputs.scales[place + token]);
        }
    }
    for (int each = 0; each < BLOCKS; ++each) {
        Floats scale = all(1);
        if (!FOUR_BITS) scale = floats((const float *)matrix.scales + (block + each) * LANES);
        for (int token = 0; token < TOKENS; ++token) out[each * TOKENS + token] = totals[each][token] * scale;
    }
}

// The same of a matrix that lies row by row, as PyTorch keeps it.
template <int TOKENS, int ROWS, class Weight>
static void dense_block(const Matrix &matrix, int64_t block, const Inputs &inputs, int64_t first, Floats *out) {
    int64_t in = matrix.in, whole = in - in % LANES;
    const float *values = inputs.values + first * in;
    for (int64_t row = block * LANES; row < (block + 1) * LANES && row < matrix.out; row += ROWS) {
        const Weight *weights[ROWS];
        for (int each = 0; each < ROWS; ++each)  // past the last row stands the last
            weights[each] = (const Weight *)matrix.weights + (row + each < matrix.out ? row + each : row) * in;
        Floats totals[ROWS][TOKENS] = {};
        for (int64_t place = 0; place < whole; place += LANES) {
            Floats parts[TOKENS];
            for (int token = 0; token < TOKENS; ++token) parts[token] = floats(values + token * in + place);
            for (int each = 0; each < ROWS; ++each) {
                Floats weight = floats(weights[each] + place);
                for (int token = 0; token < TOKENS; ++token) totals[each][token] += weight * parts[token];
            }
        }
        for (int each = 0; each < ROWS; ++each)
            for (int token = 0; token < TOKENS; ++token) {
                float total = sum(totals[each][token]);
                for (int64_t place = whole; place < in; ++place)
                    total += number(weights[each][place]) * values[token * in + place];
                out[token][row - block * LANES + each] = total;
            }
    }
}

template <int TOKENS, class Weight>
static void dense_tile(const Matrix &matrix, int64_t block, const Inputs &inputs, int64_t first, Floats *out) {
    if (inputs.tokens > SMALL_TILE)
        dense_block<TOKENS, 4, Weight>(matrix, block, inputs, first, out);
    else  // memory is what takes time, and it is read fastest one row after the other
        dense_block<TOKENS, 1, Weight>(matrix, block, inputs, first, out);
}

template <int TOKENS, int BLOCKS>
static void tile(const Matrix &matrix, int64_t block, const Inputs &inputs, int64_t first, Floats *out) {
    constexpr int FEW = TOKENS < SMALL_TILE ? TOKENS : SMALL_TILE;
    if (matrix.kind == FP32) dense_tile<FEW, float>(matrix, block, inputs, first, out);
    if (matrix.kind == BF16) dense_tile<FEW, bf16>(matrix, block, inputs, first, out);
    if (matrix.kind == INT8) quantised_blocks<TOKENS, BLOCKS, false>(matrix, block, inputs, first, out);
    if (matrix.kind == INT4) quantised_blocks<TOKENS, BLOCKS, true>(matrix, block, inputs, first, out);
}

// Sixteen outputs a block of all tokens, into `out` (tokens, matrix.out).
template <int BLOCKS>
static void block_product(const Matrix &matrix, int64_t block, const Inputs &inputs, float *out) {
    static constexpr decltype(&tile<1, BLOCKS>) TILES[TILE] = {
        tile<1, BLOCKS>, tile<2, BLOCKS>, tile<3, BLOCKS>, tile<4, BLOCKS>,
        tile<5, BLOCKS>, tile<6, BLOCKS>, tile<7, BLOCKS>, tile<8, BLOCKS>};
    int64_t most = BLOCKS == 1 && is_quantised(matrix) ? TILE : SMALL_TILE;
    for (int64_t first = 0; first < inputs.tokens; first += most) {
        int64_t tokens = inputs.tokens - first < most ? inputs.tokens - first : most;
        Floats found[BLOCKS * TILE];
        TILES[tokens - 1](matrix, block, inputs, first, found);
        for (int64_t each = 0; each < BLOCKS * tokens; ++each) {
            int64_t token = first + each % tokens, column = (block + each / tokens) * LANES;
            int64_t count = matrix.out - column < LANES ? matrix.out - column : LANES;
            for (int64_t lane = 0; lane < count; ++lane)
                out[token * matrix.out + column + lane] =
                    found[each][lane] + (matrix.bias ? matrix.bias[column + lane] : 0);
        }
    }
}

// To be called by all threads of a team; the result is whole behind the team's next barrier.
static void product(const Matrix &matrix, const Inputs &inputs, float *out) {
    int64_t blocks = blocks_of(matrix.out, LANES);
    bool pairs = is_quantised(matrix) && inputs.tokens > TILE;  // half the loads of inputs
#pragma omp for schedule(static) nowait
    for (int64_t block = 0; block < blocks; block += pairs ? 2 : 1)
        if (pairs && block + 1 < blocks)
            block_product<2>(matrix, block, inputs, out);
        else
            block_product<1>(matrix, block, inputs, out);
}
