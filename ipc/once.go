package ipc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
	"time"
)

// PublishOnce waits before it connects again, from the second time on, and twice as long each time.
const (
	firstPause = 10 * time.Millisecond
	lastPause  = 500 * time.Millisecond
)

var errID = errors.New("bad id: an id is 1 to 128 bytes")

// PublishOnce is Publish with an id of the publisher's choice, 1 to MaxID bytes: while a message of the channel with this
// id is in the log, wscastd does not append another, and answers as if it had.
//
// So PublishOnce can try again by itself, and does: where wscastd closes the connection before it has answered, as
// when it crashes, or closed it earlier, it connects to the same path and publishes again, until ctx ends. A program
// that does not know whether it has published something, because it was restarted itself, publishes it again with the
// same id.
//
// Errors: a *ReplyError is the message refused, and nothing was appended by this call. ErrClosed. A *DialError that
// waiting does not help against. The cause of ctx's end, with what it was that failed, or nothing if there was just no
// answer: then it is not known whether the message is in the log, and the Client connects again at the next call.
func (c *Client) PublishOnce(ctx context.Context, channel string, message []byte, id string) (int, error) {
	if id == "" || len(id) > MaxID {
		return 0, errID
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy != "" {
		return 0, c.usable()
	}
	var last error // why it is tried again
	var pause time.Duration
	for {
		receivers, err := 0, ctx.Err()
		if err == nil && c.err != nil {
			err = c.reconnect()
		}
		if err == nil {
			receivers, err = c.publishUntil(ctx, channel, message, id)
		}
		again := passing(err)
		if again {
			last = err
		}
		switch {
		case err == nil || refused(err):
			return receivers, err
		case c.isClosed():
			return 0, ErrClosed
		case ctx.Err() != nil:
			return 0, gaveUp(ctx, last)
		case !again:
			return 0, err
		}
		select {
		case <-time.After(pause):
		case <-c.closed:
			return 0, ErrClosed
		case <-ctx.Done():
			return 0, gaveUp(ctx, last)
		}
		pause = min(max(2*pause, firstPause), lastPause)
	}
}

// publishUntil is publish, given up when ctx ends: nobody knows then what the next answer is to, and the connection is
// no good any more. The caller holds mu.
func (c *Client) publishUntil(ctx context.Context, channel string, message []byte, id string) (int, error) {
	if ctx.Done() == nil {
		return c.publish(channel, message, id)
	}
	conn, ended := c.conn, make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		conn.SetDeadline(longAgo)
	})
	receivers, err := c.publish(channel, message, id)
	if !stop() {
		<-ended
		conn.SetDeadline(time.Time{}) // the answer may have come at the last moment
	}
	return receivers, err
}

// reconnect makes a client whose connection has failed as it was in the beginning. The caller holds mu.
func (c *Client) reconnect() error {
	conn, err := dial(context.Background(), c.path) // which does not wait: a full queue is an error (unix(7), EAGAIN)
	if err != nil {
		return err
	}
	c.closing.Lock()
	defer c.closing.Unlock()
	if c.isClosed() {
		conn.Close()
		return ErrClosed
	}
	c.conn, c.err = conn, nil
	c.r.Reset(conn)
	return nil
}

// passing tells whether an error is one that is over when the next wscastd is there: the end of the connection, and
// those of connecting while nobody listens, the socket is not there yet, or its queue is full.
func passing(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) ||
		errors.Is(err, syscall.EAGAIN)
}

// gaveUp is the error of a call that ctx has ended.
func gaveUp(ctx context.Context, last error) error {
	if last == nil {
		return fmt.Errorf("no answer from wscastd: %w", context.Cause(ctx))
	}
	return fmt.Errorf("%w, and no answer since: %w", last, context.Cause(ctx))
}
