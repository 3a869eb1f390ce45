// Package shardtest is work in progress.
package shardtest
