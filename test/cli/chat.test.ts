import { PassThrough } from "node:stream";
import { setTimeout } from "node:timers/promises";
import { expect, test } from "vitest";
import { chat } from "../../cli/chat.ts";
import { NEUTRAL_SAMPLING } from "../../runtime/sampling.ts";
import { Session } from "../../runtime/session.ts";
import { fakeModel, type Script, textScript } from "../runtime/fake-engine.ts";

/** A chat with a fake model, and what it has printed so far. */
function begin(script: Script, more: { system?: string; context?: number; delayMs?: number; terminal?: boolean } = {}) {
  const { model, engine } = fakeModel({ script, ...more });
  const session = new Session(model);
  const input = new PassThrough();
  const output = Object.assign(new PassThrough(), more.terminal ? { isTTY: true, columns: 80 } : {});
  let printed = "";
  output.setEncoding("utf8").on("data", (text: string) => (printed += text));
  const generation = { sampling: NEUTRAL_SAMPLING, stop: [], ignoreEos: false };
  const done = chat(session, { system: more.system, tokens: 100, generation }, input, output);
  const prompts = () =>
    engine.steps
      .filter(({ positions }) => positions[0] === 0)
      .map(({ tokens }) => String.fromCharCode(...tokens.filter((token) => token < 256)));
  const until = async (text: string) => {
    while (!printed.includes(text)) await setTimeout(1);
  };
  return { input, done, prompts, until, printed: () => printed };
}

test("keeps the conversation, and /clear begins anew", async () => {
  const { input, done, prompts, printed } = begin(textScript("Yes."), { system: "Be brief." });
  input.end("Hi\nReally?\n/clear\nHello\n");
  await done;
  expect(prompts()).toEqual([
    "[system]Be brief.[user]Hi[assistant]",
    "[system]Be brief.[user]Hi[assistant]Yes.[user]Really?[assistant]",
    "[system]Be brief.[user]Hello[assistant]",
  ]);
  expect(printed()).toBe("> Yes.\n> Yes.\n> > Yes.\n> ");
});

test("/bye leaves, empty lines say nothing", async () => {
  const { input, done, prompts } = begin(textScript("Yes."));
  input.write("\n  \n/bye\nHi\n");
  await done;
  expect(prompts()).toEqual([]);
});

test("a conversation beyond the context says so and goes on", async () => {
  const { input, done, prompts, printed } = begin(textScript("Yes."), { context: 40 });
  input.end(`${"long ".repeat(10)}\nHi\n`);
  await done;
  expect(printed()).toContain("conversation (/clear begins anew): expected at most 39 tokens in a context of 40");
  expect(prompts()).toEqual(["[user]Hi[assistant]"]);
});

test("Ctrl-C stops an answer, clears a line, and leaves at an empty one", async () => {
  const { input, done, prompts, until } = begin(() => 122, { delayMs: 2, terminal: true });
  input.write("Hi\r");
  await until("zzz");
  input.write("\x03");
  await until("z\n");
  input.write("never sent\x03");
  await setTimeout(5);
  input.write("\r\x03");
  await done;
  expect(prompts()).toEqual(["[user]Hi[assistant]"]);
});

test("a model without a chat template cannot chat", async () => {
  const { model } = fakeModel();
  const session = new Session({ ...model, chatTemplate: undefined });
  const generation = { sampling: NEUTRAL_SAMPLING, stop: [], ignoreEos: false };
  const refused = chat(session, { tokens: 1, generation }, new PassThrough(), new PassThrough());
  await expect(refused).rejects.toMatchObject({ code: "E_NO_TEMPLATE" });
});
