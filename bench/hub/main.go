// The hub is the broadcast server that most Go programs have: net/http, gorilla's Upgrader,
// and two goroutines per client, one that reads and one that writes what comes down the
// client's channel. Messages are prepared once (websocket.PreparedMessage). It is what the
// bench compares with, and has no other use.
//
//	hub ADDRESS PATH
//
// Clients connect to ws://ADDRESS/websocket. A publisher writes messages to the Unix socket
// PATH, each behind its length in four bytes, big-endian.
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/gorilla/websocket"
)

// queue is how many messages a client may be behind before it is dropped, as in gorilla's
// chat example.
const queue = 256

const maxMessage = 1 << 20

type hub struct {
	upgrader websocket.Upgrader

	mu      sync.Mutex
	clients map[chan *websocket.PreparedMessage]struct{}
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: hub ADDRESS PATH")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "hub:", err)
		os.Exit(1)
	}
}

func run(address, path string) error {
	publish, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	h := &hub{clients: make(map[chan *websocket.PreparedMessage]struct{})}
	failed := make(chan error, 2)
	go func() { failed <- h.readPublishers(publish) }()
	http.HandleFunc("/websocket", h.serve)
	go func() { failed <- http.ListenAndServe(address, nil) }()
	return <-failed
}

func (h *hub) serve(w http.ResponseWriter, r *http.Request) {
	// Registered before the answer: whoever has it is sent what is published next.
	messages := make(chan *websocket.PreparedMessage, queue)
	h.mu.Lock()
	h.clients[messages] = struct{}{}
	h.mu.Unlock()

	conn, err := h.upgrader.Upgrade(w, r, nil)
	if err != nil {
		h.forget(messages)
		return
	}
	go func() {
		defer conn.Close()
		for m := range messages {
			if conn.WritePreparedMessage(m) != nil {
				h.forget(messages)
				return
			}
		}
	}()
	// A goroutine of its own, so that net/http's for this connection ends and gives its
	// buffers back; two remain per client.
	go func() {
		for {
			if _, _, err := conn.NextReader(); err != nil {
				h.forget(messages)
				return
			}
		}
	}()
}

func (h *hub) forget(messages chan *websocket.PreparedMessage) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.clients[messages]; ok {
		delete(h.clients, messages)
		close(messages)
	}
}

func (h *hub) publish(message *websocket.PreparedMessage) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for messages := range h.clients {
		select {
		case messages <- message:
		default:
			delete(h.clients, messages)
			close(messages)
		}
	}
}

func (h *hub) readPublishers(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		if err := h.readPublisher(conn); err != nil {
			return err
		}
	}
}

func (h *hub) readPublisher(conn net.Conn) error {
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 64<<10)
	for {
		var length uint32
		if err := binary.Read(r, binary.BigEndian, &length); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if length > maxMessage {
			return fmt.Errorf("publisher sent a length of %d: at most %d", length, maxMessage)
		}
		payload := make([]byte, length)
		if _, err := io.ReadFull(r, payload); err != nil {
			return err
		}
		message, err := websocket.NewPreparedMessage(websocket.TextMessage, payload)
		if err != nil {
			return err
		}
		h.publish(message)
	}
}
