import { randomInt } from "node:crypto";
import { type ChatMessage, renderChat } from "../model/chat-template.ts";
import type { Tokenizer } from "../model/tokenizer.ts";

/**
 * Token ids of a conversation, ready for the assistant's answer. The template adds its own BOS if it wants one.
 * @param specialTokens text of every special token: in a message it is ordinary text, only the template may write
 *   control tokens
 * @throws E_TEMPLATE when the template refuses the messages or does not keep its limits
 */
export async function encodeChat(
  messages: readonly ChatMessage[],
  template: string,
  specialTokens: readonly string[],
  tokenizer: Tokenizer,
): Promise<number[]> {
  const { quoted, mark } = quoteSpecialTokens(messages, specialTokens);
  const text = await renderChat(template, quoted, {
    ...tokenName("bosToken", tokenizer, tokenizer.bosToken),
    ...tokenName("eosToken", tokenizer, tokenizer.eosTokens[0] ?? null),
    addGenerationPrompt: true,
  });
  // Odd pieces are the numbers of the special tokens that were quoted.
  return text.split(mark).flatMap((piece, i) => {
    const isQuote = i % 2 === 1;
    const literal = isQuote ? specialTokens[Number(piece)]! : piece;
    return tokenizer.encode(literal, { addSpecialTokens: false, parseSpecial: !isQuote });
  });
}

function tokenName<K extends string>(key: K, tokenizer: Tokenizer, id: number | null): { [P in K]?: string } {
  return (id === null ? {} : { [key]: tokenizer.decode([id], { skipSpecialTokens: false }) }) as { [P in K]?: string };
}

/**
 * Replaces special-token text inside messages by marks that no message can forge, for the template to carry along.
 * Nothing else is touched, so that messages without such text are encoded together with what surrounds them.
 */
function quoteSpecialTokens(messages: readonly ChatMessage[], specialTokens: readonly string[]) {
  const key = `${randomInt(2 ** 47)}`;
  const quote = (content: string) =>
    specialTokens.reduce((text, token, i) => text.replaceAll(token, `\uE000${key}:${i}\uE001`), content);
  return {
    quoted: messages.map((message) => ({ ...message, content: quote(message.content) })),
    mark: new RegExp(`\uE000${key}:(\\d+)\uE001`),
  };
}
