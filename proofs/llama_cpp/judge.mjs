// Asks llama.cpp about a GGUF file: node judge.mjs NODE_MODULES REQUEST ANSWER
//
// The request, JSON: {model, contextSize, tokenize: [text], parseSpecial, generate: [{ids, count}], score: [[id]],
// ends: [id]}. Without contextSize only the vocabulary is loaded. The answer has under the same names:
//   tokenize   the ids of each text; with parseSpecial, text that spells a control token becomes it
//   generate   `count` ids, greedily, or fewer if the model ends its text
//   score      the most likely id after each position
//   ends       whether llama.cpp stops at this id
import {readFileSync, writeFileSync} from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const entry = path.resolve(process.argv[2], "node-llama-cpp", "dist", "index.js");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry).href);
const request = JSON.parse(readFileSync(process.argv[3], "utf8"));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 1});
const model = await llama.loadModel({modelPath: request.model, vocabOnly: !request.contextSize, useMmap: true});
const answer = {
    tokenize: (request.tokenize ?? []).map((text) => model.tokenize(text, request.parseSpecial ?? false)),
    generate: [],
    score: [],
    ends: (request.ends ?? []).map((token) => model.isEogToken(token))
};

if (request.contextSize) {
    const context = await model.createContext({
        contextSize: request.contextSize, batchSize: request.contextSize, flashAttention: false, threads: 1
    });
    const sequence = context.getSequence();
    for (const {ids, count} of request.generate ?? []) {
        await sequence.clearHistory();
        const generated = [];
        for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
            generated.push(token);
            if (generated.length === count || model.isEogToken(token))
                break;
        }
        answer.generate.push(generated);
    }
    for (const ids of request.score ?? []) {
        await sequence.clearHistory();
        const results = await sequence.controlledEvaluate(
            ids.map((id) => [id, {generateNext: {token: true, options: {temperature: 0}}}]));
        answer.score.push(results.map((result) => result.next.token));
    }
}

writeFileSync(process.argv[4], JSON.stringify(answer));
process.exit(0);
