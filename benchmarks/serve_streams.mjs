// Answers prompts with llama.cpp: node serve_streams.mjs NODE_MODULES MODEL THREADS
//
// Reads lines {prompts: [[id]], new_tokens} and writes for each {seconds, cpu_seconds, answers: [[id]]}: all prompts at
// once, as sequences of one context, greedily. Making the context is not part of the time.
import path from "node:path";
import readline from "node:readline";
import {pathToFileURL} from "node:url";

const [modules, modelPath, threads] = process.argv.slice(2);
const entry = path.resolve(modules, "node-llama-cpp", "dist", "index.js");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry).href);
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: Number(threads)});
const model = await llama.loadModel({modelPath});

async function answer(sequence, prompt, count) {
    const tokens = [];
    for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        tokens.push(token);
        if (tokens.length === count)
            break;
    }
    return tokens;
}

console.log(JSON.stringify({ready: true}));
for await (const line of readline.createInterface({input: process.stdin})) {
    const {prompts, new_tokens} = JSON.parse(line);
    const context = await model.createContext({
        sequences: prompts.length, contextSize: prompts[0].length + new_tokens + 1, batchSize: 512,
        threads: Number(threads), flashAttention: true
    });
    const sequences = prompts.map(() => context.getSequence());
    const start = performance.now(), startCpu = process.cpuUsage();
    const answers = await Promise.all(sequences.map((sequence, i) => answer(sequence, prompts[i], new_tokens)));
    const seconds = (performance.now() - start) / 1000, cpu = process.cpuUsage(startCpu);
    await context.dispose();
    console.log(JSON.stringify({seconds, cpu_seconds: (cpu.user + cpu.system) / 1e6, answers}));
}
process.exit(0);
