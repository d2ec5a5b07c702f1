// Types of wscast.mjs, and of the global wscast that wscast.js makes.

export interface Message {
  channel: string
  /** What the message is known by: subscribe with it to get what came after it. */
  id: string
  /** When it was published. */
  time: Date
  /** Text, or the bytes of a message that was published as binary. */
  data: string | Uint8Array
}

export type State =
  /** A connection is being made. */
  | "connecting"
  /** Messages come. */
  | "open"
  /** The connection was cut, or could not be made; the next try comes after a while. */
  | "waiting"
  /** close was called. */
  | "closed"

export interface Options {
  /** Lets the page in: a token, or what gets one, which is asked again for each connection. */
  token?: string | (() => string | Promise<string>)
  /** Called with each new state, not with the first "connecting"; reason says why, for people: the greeting where it is open, an error otherwise. */
  onstate?: (state: State, reason: string) => void
  /** Whether to read an event stream where a WebSocket does not get through. Default: true. */
  sse?: boolean
  /** Of an event stream, as of fetch. Default: "same-origin". */
  credentials?: RequestCredentials
  /** A connection is made anew after a random time up to min, which doubles up to max, in ms; up to 5000 at first where the server restarts. Defaults: 1000 and 30000. */
  min?: number
  max?: number
}

export interface SubscribeOptions {
  /** Begin after the message with this id. It goes before since. */
  id?: string
  /** Begin with what is younger, such as "30s", or with the newest message there is: "last". */
  since?: string
  /** Called when messages were missed that the server does not have any more. */
  onincomplete?: (channel: string) => void
  /** Called when the server refuses; the subscription is at its end then. Default: console.error. */
  onerror?: (error: Error & { code: string }) => void
}

export interface Subscription {
  readonly channel: string
  /** Where it would go on: the id of the last message, or of a later one of another channel; undefined before the server has answered. */
  readonly id: string | undefined
  close(): void
}

export interface Connection {
  readonly state: State
  readonly reason: string
  onstate?: ((state: State, reason: string) => void) | null
  /** One subscription for each channel: a second one takes the place of the first. It goes on by itself after every cut, without a gap and without a repeat. */
  subscribe(channel: string, onmessage: (message: Message) => void, options?: SubscribeOptions): Subscription
  /**
   * The number of clients that it goes to. What is published while a connection is being made waits for it. It fails with a code of the protocol; with
   * "unavailable" also where there is no connection, or an event stream, and nothing was sent; with "cut" if the connection was cut before the
   * answer: it may or may not be published. The same holds for history and presence.
   */
  publish(channel: string, data: string | ArrayBuffer | ArrayBufferView): Promise<number>
  /** The newest messages, at most so many, the oldest of them first. */
  history(channel: string, last: number): Promise<Message[]>
  presence(channel: string): Promise<{ clients: number; identities: string[] }>
  close(): void
}

/** Connects to a URL such as "/websocket" and stays connected until close is called. */
export function connect(url: string | URL, options?: Options): Connection

declare global {
  var wscast: { connect: typeof connect }
}
