// Asks llama.cpp about GGUF files: node judge.mjs NODE_MODULES REQUESTS ANSWERS
//
// Requests, a list in JSON: {model, contextSize, tokenize: [text], parseSpecial, generate: [{ids, count}], score: [[id]],
// ends: [id]}. Without contextSize only the vocabulary is loaded. Each answer has under the same names:
//   tokenize   the ids of each text; with parseSpecial, text that spells a control token becomes it
//   generate   `count` ids, greedily, or fewer if the model ends its text
//   score      the most likely id after each position
//   ends       whether llama.cpp stops at this id
// The KV cache is float32, so that llama.cpp rounds as little as it can.
import {readFileSync, writeFileSync} from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const [modules, requests, answers] = process.argv.slice(2);
const entry = path.resolve(modules, "node-llama-cpp", "dist", "index.js");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry).href);
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 1});

async function generate(model, sequence, {ids, count}) {
    const generated = [];
    await sequence.clearHistory();
    for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
        generated.push(token);
        if (generated.length === count || model.isEogToken(token))
            break;
    }
    return generated;
}

async function score(sequence, ids) {
    await sequence.clearHistory();
    const results = await sequence.controlledEvaluate(
        ids.map((id) => [id, {generateNext: {token: true, options: {temperature: 0}}}]));
    return results.map((result) => result.next.token);
}

async function answer(request) {
    const model = await llama.loadModel({modelPath: request.model, vocabOnly: !request.contextSize});
    const result = {
        tokenize: (request.tokenize ?? []).map((text) => model.tokenize(text, request.parseSpecial ?? false)),
        ends: (request.ends ?? []).map((token) => model.isEogToken(token)),
        generate: [],
        score: []
    };
    if (request.contextSize) {
        const context = await model.createContext({
            contextSize: request.contextSize, batchSize: request.contextSize, flashAttention: false, threads: 1,
            experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"
        });
        const sequence = context.getSequence();
        for (const prompt of request.generate ?? [])
            result.generate.push(await generate(model, sequence, prompt));
        for (const ids of request.score ?? [])
            result.score.push(await score(sequence, ids));
        await context.dispose();
    }
    await model.dispose();
    return result;
}

const results = [];
for (const request of JSON.parse(readFileSync(requests, "utf8")))
    results.push(await answer(request));
writeFileSync(answers, JSON.stringify(results));
process.exit(0);
