import { describe, expect, test } from "vitest";
import { renderChat, type ChatMessage } from "../../model/chat-template.ts";

const MESSAGES: ChatMessage[] = [
  { role: "system", content: "Be brief." },
  { role: "user", content: "Who is there?" },
  { role: "assistant", content: "The ferryman." },
  { role: "user", content: "Cross with me." },
];
const TOKENS = { bosToken: "<s>", eosToken: "</s>", addGenerationPrompt: true };

const render = (template: string, messages = MESSAGES) => renderChat(template, messages, TOKENS);
const limit = (message: string) => ({ code: "E_TEMPLATE_LIMIT", message: expect.stringContaining(message) });
const complaint = (message: string) => ({ code: "E_TEMPLATE", message: expect.stringContaining(message) });

const CHATML = `{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}`;

const LLAMA2 = `{% if messages[0]['role'] == 'system' %}
  {%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{%- for message in messages %}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
  {%- endif %}
  {%- if message['role'] == 'user' %}
    {{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' }}
  {%- else %}{{- ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}
{%- endfor %}`;

describe("templates of checkpoints", () => {
  test("ChatML", async () => {
    expect(await render(CHATML)).toBe(
      "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho is there?<|im_end|>\n" +
        "<|im_start|>assistant\nThe ferryman.<|im_end|>\n<|im_start|>user\nCross with me.<|im_end|>\n<|im_start|>assistant\n",
    );
  });

  test("Llama 2", async () => {
    expect(await render(LLAMA2)).toBe(
      "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho is there? [/INST] The ferryman. </s><s>[INST] Cross with me. [/INST]",
    );
  });

  test("tokens that the checkpoint lacks are empty", async () => {
    const text = await renderChat("{{ bos_token }}|{{ eos_token }}|{{ add_generation_prompt }}", [], {
      addGenerationPrompt: false,
    });
    expect(text).toBe("||false");
  });

  test("renderings at the same time do not mix", async () => {
    const names = Array.from({ length: 8 }, (_, i) => `speaker ${i}`);
    const texts = await Promise.all(
      names.map((content) => render("{{ messages[0].content }}", [{ role: "user", content }])),
    );
    expect(texts).toEqual(names);
  });
});

test("a template's complaint is the error", async () => {
  await expect(render(LLAMA2, MESSAGES.slice(2))).rejects.toMatchObject(
    complaint("chat template: Conversation roles must alternate"),
  );
});

test.each([
  ["no iterable", "{% for x in %}"],
  ["an open expression", "{{ 1 +"],
  ["a stray end", "{% endif %}"],
  ["nesting without end", `{{ ${"(".repeat(20_000)} }}`],
])("refuses a template with %s", async (_what, template) => {
  await expect(render(template)).rejects.toMatchObject(complaint("chat template: "));
});

test.each([
  "{{ messages.constructor }}",
  "{{ messages.__proto__ }}",
  "{{ messages[0].constructor }}",
  "{{ messages[0]['__proto__'] }}",
  "{{ ''.constructor }}",
  "{{ range.constructor }}",
  "{{ (1).__proto__ }}",
  "{{ process }}{{ require }}{{ globalThis }}{{ this }}",
])("reaches nothing through %s", async (template) => {
  expect(await render(template)).toBe("");
});

describe("limits", () => {
  test("time", async () => {
    const loop = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    await expect(render(loop)).rejects.toMatchObject(
      limit("chat template: expected a result within 2000 ms, found none"),
    );
  });

  test("memory", async () => {
    await expect(render("{{ range(1000000000) | length }}")).rejects.toMatchObject(
      limit("expected at most 64 MiB of memory"),
    );
  });

  test("output", async () => {
    const template = "{% for a in range(1100) %}{{ messages[0].content }}{% endfor %}";
    const messages = [{ role: "user", content: "x".repeat(1000) }];
    await expect(render(template, messages)).rejects.toMatchObject(
      limit("expected at most 1048576 characters of output, found 1100000"),
    );
  });

  test("the next rendering works", async () => {
    expect(await render("{{ messages | length }}")).toBe("4");
  });
});
