// What Hugging Face's client for Node makes of the service: node ask.mjs URL KEY IMAGE, one line of JSON. Version 4
// speaks OpenAI's dialects, version 2, which people still have, TGI's. IMAGE is a data URI of a red circle.
import { InferenceClient } from "@huggingface/inference";
import { HfInference, HfInferenceEndpoint } from "inference-2";

const [url, key, image] = process.argv.slice(2);
const inputs = "<|im_start|>User:\nWho are you?<end_of_utterance>\nAssistant:\n";
const parameters = { max_new_tokens: 60 };
const chat = { messages: [{ role: "user", content: "Who are you?" }], max_tokens: 60 };
const shown = { type: "image_url", image_url: { url: image } };
const file = new Blob([Buffer.from(image.split(",")[1], "base64")], { type: "image/png" });
const question = { question: "What color is the circle?", image: file };

async function collected(events) {
  const all = [];
  for await (const event of events) all.push(event);
  return all;
}

async function refusal(promise) {
  return promise.then(
    () => "none",
    (error) => JSON.stringify([error.message, error.httpResponse ?? null])
  );
}

// `more`: version 2 asks the hub for a model where none is named.
async function ask(client, more) {
  return {
    whole: await client.textGeneration({ inputs, parameters, ...more }),
    pieces: await collected(client.textGenerationStream({ inputs, parameters, ...more })),
    chat: await client.chatCompletion({ ...chat, ...more }),
    deltas: await collected(client.chatCompletionStream({ ...chat, ...more })),
    seen: await client.chatCompletion({
      messages: [{ role: "user", content: [{ type: "text", text: question.question }, shown] }],
      ...more,
    }),
    answer: await client.visualQuestionAnswering({ inputs: question, ...more }),
    document: await client.documentQuestionAnswering({ inputs: question, ...more }),
    refusal: await refusal(client.textGeneration({ inputs, parameters: { temperature: -1 }, ...more })),
    no_image: await refusal(
      client.visualQuestionAnswering({ inputs: { ...question, image: new Blob(["a text"]) }, ...more })
    ),
  };
}

const [four, two] = [new InferenceClient(key).endpoint(url), new HfInference(key).endpoint(url)];
// As TGI's guide to vision models has it.
const guided = {
  inputs: `![](${image})What is in this image?\n\n`,
  parameters: { max_new_tokens: 16, seed: 42 },
  model: "tgi",
};
const told = {
  new: await ask(four, {}),
  old: await ask(two, { model: "tgi" }),
  shown: await collected(new HfInferenceEndpoint(url, key).textGenerationStream(guided)),
  completed: await collected(
    four.textGenerationStream({ inputs: guided.inputs, parameters: guided.parameters })
  ),
  old_caption: await two.imageToText({ data: file, model: "tgi" }),
  new_caption: await refusal(four.imageToText({ data: file })),
};
console.log(JSON.stringify(told));
