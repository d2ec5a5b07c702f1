// wscast.js: see wscast.d.ts.

// As a script it makes the global wscast; wscast.mjs is the same as a module. wscastd serves it without the comments and most of the blanks
// (shrink in web.go): a comment has a line of its own, and no string has an operator between blanks. It speaks doc/protocol.txt 6.9 and 6.10.
(() => {
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0))
  const base64 = (b) => {
    if (!(b?.byteLength >= 0)) throw TypeError("a string, an ArrayBuffer or a view of one")
    return btoa(new Uint8Array(b.buffer ?? b, b.byteOffset ?? 0, b.byteLength).reduce((s, c) => s + String.fromCharCode(c), ""))
  }
  const log = (id) => id.slice(0, 16)
  const seq = (id) => BigInt(id.slice(17))
  const before = (a, b) => !a || log(a) !== log(b) || seq(a) < seq(b)
  const fail = (code, message) => Object.assign(Error(message), { code })
  // An error of the page's own is reported as such, and ends nothing here.
  const tell = (f, ...args) => { try { f?.(...args) } catch (e) { setTimeout(() => { throw e }) } }

  class Connection {
    // turn ends one try and what comes of it. socket: a WebSocket that was welcomed. blocked: how many were not, in a row.
    #url; #o; #subs = new Map(); #asked = new Map(); #queue = []; #histories = []; #ref = 0
    #life = new AbortController(); #turn; #timer; #tries = 0; #since = Infinity
    #socket; #part; #streams; #blocked = 0
    state = "connecting"; reason = ""

    constructor(url, options) {
      this.#url = new URL(url, location.href)
      this.#o = { min: 1000, max: 30000, sse: true, ...options }
      this.onstate = this.#o.onstate
      const { signal } = this.#life
      addEventListener("online", this.#now, { signal })
      addEventListener("pageshow", this.#now, { signal })
      // A page that has a connection cannot be kept for the Back button.
      addEventListener("pagehide", () => { this.#drop(); this.#set("waiting", "the page is left") }, { signal })
      this.#open()
    }

    #now = () => {
      if (this.state === "waiting") this.#open()
      else if (this.#socket) this.#check()
    }

    #set(state, reason = "") {
      if (state === "open") this.#since = performance.now()
      this.state = state
      this.reason = reason
      tell(this.onstate, state, reason)
    }

    // There is one timer: for the next try, for an answer to this one, or for a sign of life.
    #wait(ms, f) {
      clearTimeout(this.#timer)
      this.#timer = setTimeout(f, ms)
    }

    async #open() {
      const { signal } = this.#turn = new AbortController(), { token, sse } = this.#o
      this.#wait(20000, () => this.#retry("no answer"))
      if (this.state !== "connecting") this.#set("connecting")
      try {
        const t = await (typeof token === "function" ? token() : token)
        if (signal.aborted) return
        // Where a WebSocket does not get through twice, an event stream may.
        if (this.#blocked > 1 && sse && this.#subs.size) {
          // A stream has one beginning: channels go together that go on from ids of one log, that begin at the same age, or now.
          const groups = {}
          for (const s of this.#subs.values()) (groups[s.id ? log(s.id) : s.since] ??= []).push(s)
          await Promise.all(Object.values(groups).map((subs) => this.#stream(subs, t, signal)))
        } else this.#talk(t, signal)
      } catch (e) {
        if (signal.aborted) return
        this.#blocked = 0
        this.#retry(e?.message ?? e, this.#streams ? 5000 : undefined)
      }
    }

    #dial(token) {
      const url = new URL(this.#url)
      url.protocol = url.protocol.replace("http", "ws")
      return new WebSocket(url, ["wscast.v1.json", ...(token ? ["wscast.token." + token] : [])])
    }

    #talk(token, signal) {
      const socket = this.#dial(token), part = {}
      signal.onabort = () => socket.close(1000)
      socket.onmessage = (e) => {
        if (signal.aborted) return
        this.#wait(25000, this.#check)
        const m = JSON.parse(e.data)
        if (m.reply === "welcome") {
          this.#socket = socket
          this.#part = part
          this.#blocked = 0
          for (const s of this.#subs.values()) this.#subscribe(s)
          for (const a of this.#queue.splice(0)) this.#send(a)
          this.#set("open", m.greeting)
        } else if (m.reply || m.error) this.#answer(m)
        else this.#message(m, part)
      }
      socket.onclose = (e) => {
        if (signal.aborted) return
        if (!this.#socket && navigator.onLine) this.#blocked++
        this.#retry(e.reason || "closed with " + e.code, [1001, 1012, 1013].includes(e.code) ? 5000 : undefined)
      }
    }

    // A page does not see the pings of a WebSocket.
    #check = () => {
      this.#ask({ command: "ping" }).catch(() => {})
      this.#wait(10000, () => this.#retry("nothing was heard"))
    }

    // Answers come in the order of what was asked: an error without a ref is about the first.
    #answer(m) {
      const ref = m.ref ?? (m.error && [...this.#asked.keys()][0]), a = this.#asked.get(ref)
      this.#asked.delete(ref)
      if (m.error) a?.no(fail(m.error, m.message))
      else if (m.reply !== "history") a?.yes(m)
      else if (m.messages) this.#histories.push({ ...a, left: m.messages, all: [] })
      else a?.yes([])
    }

    // part is what comes in the order of the log: the last message of it is one that all its channels have come to.
    #message(m, part) {
      const message = { channel: m.channel, id: m.id, time: new Date(m.time), data: m.data ?? bytes(m.base64) }
      const h = this.#histories[0], s = this.#subs.get(m.channel)
      if (h) {
        h.all.push(message)
        if (--h.left) return
        this.#histories.shift()
        return h.yes(h.all)
      }
      part.last = m.id
      if (s?.part !== part || !before(s.id, m.id)) return
      s.id = m.id
      tell(s.onmessage, message)
    }

    #subscribe(s) {
      const part = this.#part
      this.#ask({ command: "subscribe", channel: s.channel, ...(s.id ? { last_event_id: s.id } : { since: s.since }) }).then((m) => {
        s.id = m.id
        s.part = part
        // What comes next may be older.
        part.last = null
        if (!m.complete) tell(s.onincomplete, s.channel)
      }, (e) => {
        if (e.code === "cut" || this.#subs.get(s.channel) !== s) return
        if (e.code === "unavailable") return this.#retry(e.message)
        this.#subs.delete(s.channel)
        tell(s.onerror ?? console.error, e)
      })
    }

    #ask(command) {
      return new Promise((yes, no) => {
        const a = { command, yes, no }
        if (this.#socket) this.#send(a)
        else if (this.state === "connecting") this.#queue.push(a)
        else no(fail("unavailable", this.state + ": " + this.reason))
      })
    }

    #send(a) {
      this.#asked.set(++this.#ref, a)
      this.#socket.send(JSON.stringify({ ...a.command, ref: this.#ref }))
    }

    // It is read with fetch: an EventSource tells neither why it was refused, nor its place before the first message, nor that it is alive.
    async #stream(subs, token, signal) {
      const url = new URL(this.#url), headers = { accept: "text/event-stream" }, part = {}
      const set = (name, value) => value && url.searchParams.append(name, value)
      const id = subs.map((s) => s.id).reduce((a, b) => before(b, a) ? b : a)
      url.protocol = url.protocol.replace("ws", "http")
      for (const s of subs) set("channel", s.channel)
      set("envelope", 1)
      id ? set("last_event_id", id) : set("since", subs[0].since)
      if (token && url.origin === location.origin) headers.authorization = "Bearer " + token
      else set("token", token)
      const answer = await fetch(url, { headers, signal, credentials: this.#o.credentials })
      if (!/^text\/event-stream/.test(answer.headers.get("content-type"))) throw Error(answer.status + ": " + await answer.text())
      for (const s of subs) s.part = part
      if (!this.#streams) {
        this.#streams = true
        this.#refuse(this.#queue.splice(0), "unavailable", "an event stream")
        this.#set("open", "event stream")
      }
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
      let rest = "", at, type, next = 0
      for (;;) {
        const { value, done } = await reader.read(), now = performance.now()
        if (done) throw Error("the event stream has ended")
        this.#wait(60000, () => this.#retry("nothing was heard"))
        // Whether a WebSocket gets through by now is tried beside it.
        if (now > next) {
          next = now + 300000
          const probe = this.#dial(token)
          probe.onopen = () => {
            probe.close()
            this.#blocked = 0
            if (!signal.aborted) this.#retry("to a WebSocket", 0)
          }
        }
        const lines = (rest + value).split("\n")
        rest = lines.pop()
        for (const line of lines) {
          const [, name, text] = line.match(/^(\w*): ?(.*)/) ?? []
          if (name === "id") at = text
          else if (name === "event") type = text
          else if (name === "data") type ? tell(this.#subs.get(text)?.onincomplete, text) : this.#message(JSON.parse(text), part)
          else if (!line) {
            part.last = at ?? part.last
            type = at = null
          }
        }
      }
    }

    #refuse(all, code, why) { for (const a of all) a.no?.(fail(code, why)) }

    #drop(why) {
      clearTimeout(this.#timer)
      this.#turn.abort()
      for (const s of this.#subs.values()) {
        const last = s.part?.last
        if (last && before(s.id, last)) s.id = last
        s.part = null
      }
      this.#refuse([...this.#asked.values(), ...this.#histories.splice(0)], "cut", why)
      this.#refuse(this.#queue.splice(0), "unavailable", why)
      this.#asked.clear()
      this.#socket = this.#streams = null
    }

    // Full jitter: those who were cut off together come back one by one. range is for the first time; many are cut off where it is not min.
    #retry(reason, range = this.#o.min) {
      if (performance.now() - this.#since > 10000) this.#tries = 0
      this.#since = Infinity
      this.#drop(reason)
      this.#wait(Math.random() * Math.min(this.#o.max, range * 2 ** this.#tries++), () => this.#open())
      this.#set("waiting", reason)
    }

    subscribe(channel, onmessage, options) {
      if (this.state === "closed") throw fail("unavailable", "closed")
      const s = { ...options, channel, onmessage }
      this.#subs.set(channel, s)
      if (this.#socket) this.#subscribe(s)
      else if (this.#streams) this.#retry("to another stream", 0)
      return {
        channel,
        get id() { return s.id },
        close: () => {
          if (this.#subs.get(channel) !== s) return
          this.#subs.delete(channel)
          if (this.#socket) this.#ask({ command: "unsubscribe", channel }).catch(() => {})
        },
      }
    }

    async publish(channel, data) {
      return (await this.#ask({ command: "publish", channel, ...(typeof data === "string" ? { data } : { base64: base64(data) }) })).clients
    }

    history(channel, last) { return this.#ask({ command: "history", channel, last }) }

    presence(channel) { return this.#ask({ command: "presence", channel }) }

    close() {
      if (this.state === "closed") return
      this.#life.abort()
      this.#drop()
      this.#set("closed")
    }
  }

  globalThis.wscast = { connect: (url, options) => new Connection(url, options) }
})()
