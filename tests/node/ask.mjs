// What Hugging Face's client for Node makes of the service: node ask.mjs URL KEY, one line of JSON. Version 4 speaks
// OpenAI's dialects, version 2, which people still have, TGI's.
import { InferenceClient } from "@huggingface/inference";
import { HfInference } from "inference-2";

const [url, key] = process.argv.slice(2);
const inputs = "<|im_start|>User:\nWho are you?<end_of_utterance>\nAssistant:\n";
const parameters = { max_new_tokens: 60 };
const chat = { messages: [{ role: "user", content: "Who are you?" }], max_tokens: 60 };

async function collected(events) {
  const all = [];
  for await (const event of events) all.push(event);
  return all;
}

// `more`: version 2 asks the hub for a model where none is named.
async function ask(client, more) {
  return {
    whole: await client.textGeneration({ inputs, parameters, ...more }),
    pieces: await collected(client.textGenerationStream({ inputs, parameters, ...more })),
    chat: await client.chatCompletion({ ...chat, ...more }),
    deltas: await collected(client.chatCompletionStream({ ...chat, ...more })),
    refusal: await client.textGeneration({ inputs, parameters: { temperature: -1 }, ...more }).then(
      () => "none",
      (error) => JSON.stringify([error.message, error.httpResponse ?? null])
    ),
  };
}

const told = {
  new: await ask(new InferenceClient(key).endpoint(url), {}),
  old: await ask(new HfInference(key).endpoint(url), { model: "tgi" }),
};
console.log(JSON.stringify(told));
