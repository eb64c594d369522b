package kubernetes

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// api asks the API server itself: what is measured has none of kubectl's time in it.
var api = http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableCompression: true}}

// ask makes a request of the API server; who calls closes the body.
func ask(ctx context.Context, method, path, body string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+address+":6443"+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	if body != "" {
		r.Header.Set("Content-Type", "application/yaml")
	}
	answer, err := api.Do(r)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode >= 300 {
		said, _ := io.ReadAll(io.LimitReader(answer.Body, 2000))
		answer.Body.Close()
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, said)
	}
	return answer, nil
}

// podEvent is what is seen of a pod.
type podEvent struct {
	Name string
	// Seen is when it was.
	Seen  time.Time
	Ready bool
	Phase string
	Gone  bool
}

// watchPods follows the pods of a label until the test ends. What there is already comes first.
func watchPods(t testing.TB, selector string) <-chan podEvent {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	events := make(chan podEvent, 10000)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// A server ends a watch now and then.
		for ctx.Err() == nil {
			if err := follow(ctx, selector, events); err != nil && ctx.Err() == nil {
				t.Logf("watch pods: %v", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return events
}

func follow(ctx context.Context, selector string, events chan<- podEvent) error {
	answer, err := ask(ctx, http.MethodGet, "/api/v1/namespaces/default/pods?watch=1&resourceVersion=0&labelSelector="+url.QueryEscape(selector), "")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	in := json.NewDecoder(answer.Body)
	for {
		var e struct {
			Type   string
			Object json.RawMessage
		}
		if err := in.Decode(&e); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if e.Type == "ERROR" {
			return fmt.Errorf("%s", e.Object)
		}
		var pod struct {
			Metadata struct{ Name string }
			Status   struct {
				Phase      string
				Conditions []struct{ Type, Status string }
			}
		}
		if err := json.Unmarshal(e.Object, &pod); err != nil {
			return err
		}
		seen := podEvent{Name: pod.Metadata.Name, Seen: time.Now(), Phase: pod.Status.Phase, Gone: e.Type == "DELETED"}
		for _, c := range pod.Status.Conditions {
			seen.Ready = seen.Ready || c.Type == "Ready" && c.Status == "True"
		}
		select {
		case events <- seen:
		case <-ctx.Done():
			return nil
		}
	}
}

// create makes a pod.
func create(t testing.TB, yaml string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	answer, err := ask(ctx, http.MethodPost, "/api/v1/namespaces/default/pods", yaml)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
}

// remove deletes a pod, and does not wait for its end.
func remove(t testing.TB, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	answer, err := ask(ctx, http.MethodDelete, "/api/v1/namespaces/default/pods/"+name, "")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
}
