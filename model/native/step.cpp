// One pass of a decoder over a few tokens: what model/decoder.py does, without a Python step for each operation.
//
// Every thread of a team runs the same functions; `omp for` shares the loops out, and ends with a barrier.

#include <algorithm>
#include <vector>

#include "products.h"

enum Activation : int64_t { RELU2, GELU, SWIGLU };

struct Norm {
    const float *gain, *bias;  // or null
};

struct Layer {
    Norm attention_norm, mlp_norm;
    Matrix query, key, value, output, up, gate, down;
    const float *residual_scale, *embedding_scale;  // one number each, or null
    const float *own_values, *value_gate;           // (vocab, kv_heads * head_dim) and (kv_heads), or null
};

struct Model {  // the order of model/native/step.py
    int64_t layers, width, heads, kv_heads, head_dim, mlp_width, window, layer_norm, activation, qk_norm, embedding_norm;
    double eps, scale, softcap;
    Matrix embedding, head;
    Norm first_norm, final_norm;
    const float *cos, *sin;  // (context, head_dim / 2), or null
    const float *learned;    // (context, width), or null
    const Layer *blocks;
};

struct Pass {
    int64_t tokens, outputs, bf16_cache, layer_stride, row_stride, head_stride;
    const int64_t *ids, *rows, *positions;  // (tokens): what they are, in which row of the cache, and where there
    const int64_t *wanted;                  // (outputs): the tokens after which logits are wanted
    void *keys, *values;                    // (layers, rows, kv_heads, slots, head_dim)
    float *logits;                          // (outputs, vocab)
};

struct Buffers {
    std::vector<float> x, first, queries, keys, values, added, up, gate, inside, scales;
    std::vector<int8_t> codes;
    std::vector<int32_t> sums;

    Buffers(const Model &model, int64_t tokens) {
        int64_t attention = model.heads * model.head_dim, most = std::max({attention, model.width, model.mlp_width});
        for (auto *each : {&x, &first, &added}) each->resize(tokens * model.width);
        queries.resize(tokens * attention);
        for (auto *each : {&keys, &values}) each->resize(tokens * model.kv_heads * model.head_dim);
        up.resize(tokens * model.mlp_width);
        if (model.activation == SWIGLU) gate.resize(tokens * model.mlp_width);
        inside.resize(tokens * most);
        int64_t groups = tokens * blocks_of(most, GROUP);
        codes.resize(groups * GROUP);
        scales.resize(groups);
        sums.resize(groups);
    }

    Inputs inputs(int64_t tokens, int64_t size) {
        return {inside.data(), tokens, size, codes.data(), scales.data(), sums.data()};
    }
};

static void rms_norm(const float *from, float *to, int64_t size, double eps) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t place = 0; place < size; ++place) squares += from[place] * from[place];
    float factor = 1 / std::sqrt(squares / size + float(eps));
    for (int64_t place = 0; place < size; ++place) to[place] = from[place] * factor;
}

static void normalise(const Model &model, const Norm &norm, const float *from, float *to) {
    float total = 0;
    if (model.layer_norm) {
#pragma omp simd reduction(+ : total)
        for (int64_t place = 0; place < model.width; ++place) total += from[place];
        for (int64_t place = 0; place < model.width; ++place) to[place] = from[place] - total / model.width;
        from = to;
    }
    rms_norm(from, to, model.width, model.eps);
    if (norm.gain)
        for (int64_t place = 0; place < model.width; ++place) to[place] *= norm.gain[place];
    if (norm.bias)
        for (int64_t place = 0; place < model.width; ++place) to[place] += norm.bias[place];
}

// Row `id` of a matrix.
static void look_up(const Matrix &matrix, int64_t id, float *to) {
    int64_t block = id / LANES, lane = id % LANES, groups = blocks_of(matrix.in, GROUP);
    const uint8_t *bytes = (const uint8_t *)matrix.weights;
    for (int64_t place = 0; place < matrix.in; ++place) {
        int64_t group = block * groups + place / GROUP, inside = place % GROUP;
        if (matrix.kind == FP32) to[place] = ((const float *)matrix.weights)[id * matrix.in + place];
        if (matrix.kind == BF16) to[place] = number(((const bf16 *)matrix.weights)[id * matrix.in + place]);
        if (matrix.kind == INT8) {
            int byte = bytes[(group * 8 + inside / 4) * 64 + lane * 4 + inside % 4];
            to[place] = (byte - 128) * ((const float *)matrix.scales)[id];
        }
        if (matrix.kind == INT4) {
            int both = bytes[(group * 4 + inside % 16 / 4) * 64 + lane * 4 + inside % 4];
            int code = inside < 16 ? both & 15 : both >> 4;
            to[place] = (code - 8) * number(((const bf16 *)matrix.scales)[group * LANES + lane]);
        }
    }
}

static void embed(const Model &model, const Pass &pass, Buffers &buffers) {
#pragma omp for schedule(static)
    for (int64_t token = 0; token < pass.tokens; ++token) {
        float *x = &buffers.x[token * model.width];
        look_up(model.embedding, pass.ids[token], x);
        if (model.learned)
            for (int64_t place = 0; place < model.width; ++place)
                x[place] += model.learned[pass.positions[token] * model.width + place];
        if (model.embedding_norm) normalise(model, model.first_norm, x, x);
        memcpy(&buffers.first[token * model.width], x, model.width * sizeof(float));
    }
}

static void rotate(const Model &model, int64_t position, float *head) {
    int64_t half = model.head_dim / 2;
    const float *cos = model.cos + position * half, *sin = model.sin + position * half;
    for (int64_t place = 0; place < half; ++place) {
        float first = head[place], second = head[place + half];
        head[place] = first * cos[place] - second * sin[place];
        head[place + half] = first * sin[place] + second * cos[place];
    }
}

template <class Cached> static Cached *cached(const Pass &pass, void *all, int64_t layer, int64_t token, int64_t head) {
    return (Cached *)all + layer * pass.layer_stride + pass.rows[token] * pass.row_stride + head * pass.head_stride;
}

// Normalise and turn queries and keys, and put keys and values into the cache.
template <class Cached> static void remember(const Model &model, const Pass &pass, int64_t number, Buffers &buffers) {
    const Layer &layer = model.blocks[number];
    int64_t size = model.head_dim;
#pragma omp for schedule(static)
    for (int64_t token = 0; token < pass.tokens; ++token) {
        int64_t position = pass.positions[token];
        for (int64_t head = 0; head < model.heads + model.kv_heads; ++head) {
            float *turned = head < model.heads ? &buffers.queries[(token * model.heads + head) * size]
                                               : &buffers.keys[(token * model.kv_heads + head - model.heads) * size];
            if (model.qk_norm) rms_norm(turned, turned, size, model.eps);
            if (model.cos) rotate(model, position, turned);
        }
        for (int64_t head = 0; head < model.kv_heads; ++head) {
            float *key = &buffers.keys[(token * model.kv_heads + head) * size];
            float *value = &buffers.values[(token * model.kv_heads + head) * size];
            const float *own = layer.own_values + (pass.ids[token] * model.kv_heads + head) * size;
            Cached *to_key = cached<Cached>(pass, pass.keys, number, token, head) + position * size;
            Cached *to_value = cached<Cached>(pass, pass.values, number, token, head) + position * size;
            for (int64_t place = 0; place < size; ++place) {
                if (layer.own_values) value[place] += layer.value_gate[head] * own[place];
                keep(to_key + place, key[place]);
                keep(to_value + place, value[place]);
            }
        }
    }
}

template <class Cached> static float dot(const float *left, const Cached *right, int64_t size) {
    Floats totals = {};
    int64_t place = 0;
    for (; place + LANES <= size; place += LANES) totals += floats(left + place) * floats(right + place);
    float total = sum(totals);
    for (; place < size; ++place) total += left[place] * number(right[place]);
    return total;
}

template <class Cached> static void add_scaled(float *to, float factor, const Cached *from, int64_t size) {
    int64_t place = 0;
    for (; place + LANES <= size; place += LANES) {
        Floats added = floats(to + place) + factor * floats(from + place);
        memcpy(to + place, &added, sizeof added);
    }
    for (; place < size; ++place) to[place] += factor * number(from[place]);
}

// In place; `scores` has room for whole vectors. Returns the sum, which the result is still to be divided by.
static float exponentials(float *scores, int64_t count) {
    float most = *std::max_element(scores, scores + count);
    std::fill(scores + count, scores + blocks_of(count, LANES) * LANES, -INFINITY);
    Floats total = {};
    for (int64_t place = 0; place < count; place += LANES) {
        Floats powers = exponential(floats(scores + place) - most);
        memcpy(scores + place, &powers, sizeof powers);
        total += powers;
    }
    return sum(total);
}

// Of the positions that a token sees and no others, so that a short text in a large cache costs little.
template <class Cached> static void attend(const Model &model, const Pass &pass, int64_t layer, Buffers &buffers) {
    int64_t size = model.head_dim, shared = model.heads / model.kv_heads;
    std::vector<float> scores;
#pragma omp for schedule(static) collapse(2)
    for (int64_t token = 0; token < pass.tokens; ++token)
        for (int64_t head = 0; head < model.heads; ++head) {
            const float *query = &buffers.queries[(token * model.heads + head) * size];
            const Cached *keys = cached<Cached>(pass, pass.keys, layer, token, head / shared);
            const Cached *values = cached<Cached>(pass, pass.values, layer, token, head / shared);
            int64_t stop = pass.positions[token] + 1, start = std::max<int64_t>(0, stop - model.window);
            scores.resize(stop - start + LANES);
            for (int64_t place = start; place < stop; ++place)
                scores[place - start] = dot(query, keys + place * size, size) * float(model.scale);
            float factor = 1 / exponentials(scores.data(), stop - start);
            float *mixed = &buffers.inside[(token * model.heads + head) * size];
            std::fill(mixed, mixed + size, 0.0f);
            for (int64_t place = start; place < stop; ++place)
                add_scaled(mixed, factor * scores[place - start], values + place * size, size);
        }
}

static void activate(const Model &model, float *up, const float *gate) {
    for (int64_t place = 0; place < model.mlp_width; place += LANES) {
        int64_t bytes = std::min<int64_t>(LANES, model.mlp_width - place) * sizeof(float);
        Floats x = {}, gates = {};
        memcpy(&x, up + place, bytes);
        if (model.activation == RELU2) x = x > 0 ? x * x : all(0);
        if (model.activation == GELU) x = 0.5f * x * (1 + hyperbolic_tangent(0.797884561f * (x + 0.044715f * x * x * x)));
        if (model.activation == SWIGLU) {
            memcpy(&gates, gate + place, bytes);
            x *= gates / (1 + exponential(-gates));
        }
        memcpy(up + place, &x, bytes);
    }
}

// What the last block wrote is added to the stream, which is normalised for the next; in 8 bits too where `reader` is
// quantised.
static void add_and_normalise(
    const Model &model, const Pass &pass, Buffers &buffers, bool add, const Layer *scaled, const Norm &norm,
    const Matrix &reader) {
    Inputs inputs = buffers.inputs(pass.tokens, model.width);
#pragma omp for schedule(static)
    for (int64_t token = 0; token < pass.tokens; ++token) {
        float *x = &buffers.x[token * model.width];
        const float *first = &buffers.first[token * model.width], *added = &buffers.added[token * model.width];
        for (int64_t place = 0; add && place < model.width; ++place) x[place] += added[place];
        if (scaled && scaled->residual_scale)
            for (int64_t place = 0; place < model.width; ++place)
                x[place] = *scaled->residual_scale * x[place] + *scaled->embedding_scale * first[place];
        normalise(model, norm, x, inputs.values + token * model.width);
        if (is_quantised(reader)) quantise(inputs, token);
    }
}

static void run_layer(const Model &model, const Pass &pass, int64_t number, Buffers &buffers) {
    const Layer &layer = model.blocks[number];
    int64_t tokens = pass.tokens;
    add_and_normalise(model, pass, buffers, number > 0, &layer, layer.attention_norm, layer.query);
    Inputs inputs = buffers.inputs(tokens, model.width);
    product(layer.query, inputs, buffers.queries.data());
    product(layer.key, inputs, buffers.keys.data());
    product(layer.value, inputs, buffers.values.data());
#pragma omp barrier
    if (pass.bf16_cache) {
        remember<bf16>(model, pass, number, buffers);
        attend<bf16>(model, pass, number, buffers);
    } else {
        remember<float>(model, pass, number, buffers);
        attend<float>(model, pass, number, buffers);
    }
    inputs = buffers.inputs(tokens, model.heads * model.head_dim);
    if (is_quantised(layer.output)) {
#pragma omp for schedule(static)
        for (int64_t token = 0; token < tokens; ++token) quantise(inputs, token);
    }
    product(layer.output, inputs, buffers.added.data());
#pragma omp barrier
    add_and_normalise(model, pass, buffers, true, nullptr, layer.mlp_norm, layer.up);
    inputs = buffers.inputs(tokens, model.width);
    product(layer.up, inputs, buffers.up.data());
    if (model.activation == SWIGLU) product(layer.gate, inputs, buffers.gate.data());
#pragma omp barrier
    inputs = buffers.inputs(tokens, model.mlp_width);
#pragma omp for schedule(static)
    for (int64_t token = 0; token < tokens; ++token) {
        float *up = &buffers.up[token * model.mlp_width];
        activate(model, up, buffers.gate.data() + token * model.mlp_width);
        memcpy(inputs.values + token * model.mlp_width, up, model.mlp_width * sizeof(float));
        if (is_quantised(layer.down)) quantise(inputs, token);
    }
    product(layer.down, inputs, buffers.added.data());
#pragma omp barrier
}

static void write_logits(const Model &model, const Pass &pass, Buffers &buffers) {
    Inputs inputs = buffers.inputs(pass.outputs, model.width);
#pragma omp single
    for (int64_t output = 0; output < pass.outputs; ++output) {
        const float *x = &buffers.x[pass.wanted[output] * model.width];
        const float *added = &buffers.added[pass.wanted[output] * model.width];
        float *to = inputs.values + output * model.width;
        for (int64_t place = 0; place < model.width; ++place) to[place] = x[place] + added[place];
        normalise(model, model.final_norm, to, to);
        if (is_quantised(model.head)) quantise(inputs, output);
    }
    product(model.head, inputs, pass.logits);
    if (!std::isfinite(model.softcap)) return;
#pragma omp barrier
    int64_t size = pass.outputs * model.head.out;
#pragma omp for schedule(static)
    for (int64_t place = 0; place < size; place += LANES) {
        int64_t bytes = std::min<int64_t>(LANES, size - place) * sizeof(float);
        Floats x = {};
        memcpy(&x, pass.logits + place, bytes);
        x = float(model.softcap) * hyperbolic_tangent(x / float(model.softcap));
        memcpy(pass.logits + place, &x, bytes);
    }
}

extern "C" void step(const Model *model, const Pass *pass, int64_t threads) {
    Buffers buffers(*model, std::max(pass->tokens, pass->outputs));  // a row without ids has an output too
#pragma omp parallel num_threads(threads)
    {
        embed(*model, *pass, buffers);
        for (int64_t layer = 0; layer < model->layers; ++layer) run_layer(*model, *pass, layer, buffers);
        write_logits(*model, *pass, buffers);
    }
}

// Vectors (tokens, matrix.in) times the transpose of a matrix, into `to` (tokens, matrix.out).
extern "C" void multiply(const Matrix *matrix, const float *from, int64_t tokens, float *to, int64_t threads) {
    int64_t groups = is_quantised(*matrix) ? tokens * blocks_of(matrix->in, GROUP) : 0;
    std::vector<int8_t> codes(groups * GROUP);
    std::vector<float> scales(groups);
    std::vector<int32_t> sums(groups);
    Inputs inputs{(float *)from, tokens, matrix->in, codes.data(), scales.data(), sums.data()};
#pragma omp parallel num_threads(threads)
    {
        if (is_quantised(*matrix)) {
#pragma omp for schedule(static)
            for (int64_t token = 0; token < tokens; ++token) quantise(inputs, token);
        }
        product(*matrix, inputs, to);
    }
}
