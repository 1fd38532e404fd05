// Products of weight matrices with the vectors of a few tokens.
#pragma once

#include "vectors.h"

constexpr int GROUP = 32;  // inputs that share a scale
constexpr int TILE = 8;    // tokens that a weight meets while it is in a register

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
template <int TOKENS, bool FOUR_BITS>
static void quantised_block(const Matrix &matrix, int64_t block, const Inputs &inputs, int64_t first, Floats *out) {
    constexpr int OFFSET = FOUR_BITS ? 8 : 128, LOADS = FOUR_BITS ? 4 : 8;
    int64_t groups = blocks_of(matrix.in, GROUP);
    const uint8_t *weights = (const uint8_t *)matrix.weights + block * groups * LOADS * 64;
    Floats total[TOKENS] = {};
    for (int64_t group = 0; group < groups; ++group, weights += LOADS * 64) {
        int64_t place = group * inputs.tokens + first;
        const int8_t *codes = inputs.codes + place * GROUP;
        Ints dots[TOKENS];
        for (int token = 0; token < TOKENS; ++token) dots[token] = Ints{} - OFFSET * inputs.sums[place + token];
        for (int step = 0; step < LOADS; ++step) {
            Bits bits = load<Bits>(weights + 64 * step);
            Bytes low = (Bytes)(FOUR_BITS ? bits & 0x0f0f0f0fu : bits), high = (Bytes)(bits >> 4 & 0x0f0f0f0fu);
            for (int token = 0; token < TOKENS; ++token) {
                dots[token] = add_products(dots[token], low, codes + token * GROUP + 4 * step);
                if (FOUR_BITS) dots[token] = add_products(dots[token], high, codes + token * GROUP + 4 * step + 16);
            }
        }
        Floats scale = all(1);
        if (FOUR_BITS) scale = floats((const bf16 *)matrix.scales + (block * groups + group) * LANES);
        for (int token = 0; token < TOKENS; ++token)
            total[token] += __builtin_convertvector(dots[token], Floats) * (scale * inputs.scales[place + token]);
    }
    for (int token = 0; token < TOKENS; ++token)
        out[token] = FOUR_BITS ? total[token] : total[token] * floats((const float *)matrix.scales + block * LANES);
}

// The same of a matrix that lies row by row, as PyTorch keeps it. With few tokens memory is what takes time, and it is
// read fastest one row after the other.
template <int TOKENS, class Weight>
static void dense_block(const Matrix &matrix, int64_t block, const Inputs &inputs, int64_t first, Floats *out) {
    constexpr int ROWS = TOKENS > 4 ? 2 : 1;
    int64_t in = matrix.in, whole = in - in % LANES;
    const float *values = inputs.values + first * in;
    for (int64_t row = block * LANES; row < (block + 1) * LANES && row < matrix.out; row += ROWS) {
        const Weight *weights[ROWS];
        for (int each = 0; each < ROWS; ++each)  // past the last row stands the last
            weights[each] = (const Weight *)matrix.weights + (row + each < matrix.out ? row + each : row) * in;
        Floats totals[ROWS][TOKENS] = {};
        for (int64_t place = 0; place < whole; place += LANES)
            for (int each = 0; each < ROWS; ++each) {
                Floats weight = floats(weights[each] + place);
                for (int token = 0; token < TOKENS; ++token)
                    totals[each][token] += weight * floats(values + token * in + place);
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

template <int TOKENS>
static void tile(const Matrix &matrix, int64_t block, const Inputs &inputs, int64_t first, Floats *out) {
    if (matrix.kind == FP32) dense_block<TOKENS, float>(matrix, block, inputs, first, out);
    if (matrix.kind == BF16) dense_block<TOKENS, bf16>(matrix, block, inputs, first, out);
    if (matrix.kind == INT8) quantised_block<TOKENS, false>(matrix, block, inputs, first, out);
    if (matrix.kind == INT4) quantised_block<TOKENS, true>(matrix, block, inputs, first, out);
}

// Sixteen outputs of all tokens, into `out` (tokens, matrix.out).
static void block_product(const Matrix &matrix, int64_t block, const Inputs &inputs, float *out) {
    static constexpr decltype(&tile<1>) TILES[TILE] = {tile<1>, tile<2>, tile<3>, tile<4>,
                                                       tile<5>, tile<6>, tile<7>, tile<8>};
    int64_t column = block * LANES, count = matrix.out - column < LANES ? matrix.out - column : LANES;
    for (int64_t first = 0; first < inputs.tokens; first += TILE) {
        int64_t tokens = inputs.tokens - first < TILE ? inputs.tokens - first : TILE;
        Floats found[TILE];
        TILES[tokens - 1](matrix, block, inputs, first, found);
        for (int64_t token = 0; token < tokens; ++token)
            for (int64_t lane = 0; lane < count; ++lane)
                out[(first + token) * matrix.out + column + lane] =
                    found[token][lane] + (matrix.bias ? matrix.bias[column + lane] : 0);
    }
}

// To be called by all threads of a team; the result is whole behind the team's next barrier.
static void product(const Matrix &matrix, const Inputs &inputs, float *out) {
#pragma omp for schedule(static) nowait
    for (int64_t block = 0; block < blocks_of(matrix.out, LANES); ++block) block_product(matrix, block, inputs, out);
}
